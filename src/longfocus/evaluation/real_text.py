"""How well a model predicts real text, by what is in memory before it: what the demo shows of a language model.

The experiment `perplexity`, on the standard library's longest modules, which no shipped model was trained on, or on a
file of the user's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longfocus.evaluation.experiments import perplexity
from longfocus.evaluation.subject import Subject

DOCUMENTS = 12
TWO_WINDOWS, LONGEST = 512, 8_192
"""Tokens of the shortest memory, and of the longest: not many modules hold more."""

Progress = Callable[[int, int], None]
"""Called with (tokens read so far, tokens of the current length)."""


@dataclass(frozen=True)
class LossResult:
    """What was measured at one length of memory."""

    tokens: int
    perplexity: float
    loss: float
    """Nats per token, the mean over documents' windows."""
    loss_change: float
    """Less the loss of the same windows with nothing in memory."""
    loss_change_interval: tuple[float, float] | None
    """95%, paired; None for one document."""
    documents: int
    memory_bytes: int


def evaluate_loss(
    model: Any,
    tokenizer: Any,
    *,
    files: Sequence[Path],
    longest: int = LONGEST,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Iterator[LossResult]:
    """The loss of one window in each of a few files, with nothing in memory and with more and more.

    The files are those that have `longest` tokens and a window. Raises LongFocusError if there is none.
    """
    lengths = [0, TWO_WINDOWS]
    while lengths[-1] * 4 <= longest:
        lengths.append(lengths[-1] * 4)
    settings = perplexity.PerplexitySettings(
        tokens=tuple(map(str, lengths)),
        seeds=(seed,),
        data=tuple(files),
        windows=1 if len(files) > 1 else DOCUMENTS,
        max_documents=DOCUMENTS,
    )
    subject = Subject(model, tokenizer)
    for tokens in lengths:
        cell = {"tokens": tokens, "seed": seed}
        subject.begin(
            cell, lambda done, text: progress(min(done, subject.expected), subject.expected)
        )
        row = perplexity.row(list(perplexity.records(subject, settings, cell)))
        yield LossResult(
            tokens,
            row["perplexity"],
            row["loss"],
            row.get("loss_change", 0.0),
            row.get("loss_change_interval"),
            row["documents"],
            subject.costs.memory_bytes,
        )
