"""Loss of held-out documents by the length of what stands before: the same tokens, with more or less in memory.

In each document a few windows are evaluated, evenly apart, with the --tokens tokens directly before them in memory.
--documents multi keeps the memory across documents: --own tokens directly before, and --tokens of other documents.
A model without memory has all of it in its prompt; a Transformer-XL (a model whose recipe.json says so) has its
previous window. Documents are chosen by length and a hash: all of --data that have the longest --tokens, at most
--max-documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import (
    Cell,
    Experiment,
    Record,
    Row,
    Settings,
    number_of_tokens,
)
from longfocus.evaluation.intervals import loss_entries

if TYPE_CHECKING:
    from torch import Tensor

    from longfocus.evaluation.held_out import Document, HeldOut
    from longfocus.evaluation.subject import Subject

OWN = "4K"


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings(Settings):
    """Which documents, and what of them."""

    tokens: tuple[str, ...] = ("0", "512", "4K", "16K")
    """Lengths of memory, such as 0 512 16K; under --documents multi, of other documents in it."""
    data: tuple[Path, ...] = ()
    """Text files and folders; each file is a document that the model has not learned from."""
    documents: Literal["single", "multi"] = "single"
    """Only the document itself in memory, or others beside it."""
    own: str | None = None
    """Tokens of the document itself under --documents multi; the default is 4K."""
    windows: int = 4
    """Evaluated in each document, evenly apart; fewer in one that is too short for that."""
    evaluated: int | None = None
    """Tokens of an evaluated window; the default is the model's window, 256 for a model that has none."""
    max_documents: int = 50
    """At most so many documents."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LongFocusError("--data is missing. Give text files, or folders of them.")
        if self.windows < 1 or self.max_documents < 1 or (self.evaluated or 2) < 2:
            raise LongFocusError(
                f"--windows and --max-documents must be at least 1, and --evaluated at least 2. Got {self.windows}, "
                f"{self.max_documents} and {self.evaluated}."
            )
        if self.own is not None:
            number_of_tokens(self.own, "--own")
        if self.own is not None and self.documents == "single":
            raise LongFocusError(
                "--own is for --documents multi; of a single document --tokens are in memory. Leave it out."
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Also 0, nothing in memory."""
        return tuple(sorted({0 if text == "0" else number_of_tokens(text) for text in self.tokens}))

    def own_tokens(self, tokens: int) -> int:
        """Tokens directly before an evaluated window in a memory of `tokens`."""
        return number_of_tokens(self.own or OWN) if self.documents == "multi" else tokens


def records(subject: "Subject", settings: PerplexitySettings, cell: Cell) -> Iterator[Record]:
    """One for every evaluated window, with its loss at the shortest length of the run beside its own."""
    from longfocus.evaluation.contexts import evaluated_tokens
    from longfocus.evaluation.held_out import evenly, held_out

    data = held_out(settings.data, subject.tokenizer)
    size = evaluated_tokens(subject, settings.evaluated)
    longest, shortest = settings.own_tokens(settings.lengths[-1]), settings.lengths[0]
    chosen = data.chosen(longest + size, settings.max_documents, cell["seed"])
    places = [evenly(len(own.ids), longest, size, settings.windows) for own in chosen]
    subject.expected = _expected(settings, cell["tokens"], list(map(len, places)))
    for document, begins in zip(chosen, places, strict=True):
        measure = _Measure(subject, settings, data, document, begins, size, cell["seed"])
        measure.refuse_few_others()
        losses = list(measure.losses(cell["tokens"]))
        is_longer = cell["tokens"] > shortest
        with subject.costs_aside():
            before = list(measure.losses(shortest)) if is_longer else losses
        for place, loss, shorter in zip(begins, losses, before, strict=True):
            yield {
                "document": document.name,
                "place": place,
                "target_tokens": size - 1,
                "loss": loss,
                **({"loss_at_shortest": shorter} if is_longer else {}),
                **({"own_tokens": longest} if settings.documents == "multi" else {}),
            }


def _expected(settings: PerplexitySettings, tokens: int, windows: Sequence[int]) -> int:
    """Tokens that are read for a cell and for the shortest length beside it."""
    lengths = {tokens, settings.lengths[0]}
    own = sum(windows) * sum(map(settings.own_tokens, lengths))
    return own + (len(windows) * sum(lengths) if settings.documents == "multi" else 0)


@dataclass(frozen=True)
class _Measure:
    """The losses of one document."""

    subject: Any
    settings: PerplexitySettings
    data: "HeldOut"
    document: "Document"
    begins: Sequence[int]
    size: int
    seed: int

    def refuse_few_others(self) -> None:
        """Raise LongFocusError before anything is read if the longest cell will want more than there are."""
        if self.settings.documents == "multi":
            longest = self.settings.lengths[-1]
            list(self._others(longest, self.settings.own_tokens(longest)))

    def losses(self, tokens: int) -> Iterator[float]:
        """Of every evaluated window, with so much in memory."""
        from longfocus.evaluation.contexts import empty_context, holding, mean_loss

        own = self.settings.own_tokens(tokens)
        with empty_context(self.subject) as context:
            if self.settings.documents == "multi":
                for piece in self._others(tokens, own):
                    context.read(piece)
            for place in self.begins:
                with holding(context, self.document.ids[place - own : place]):
                    yield mean_loss(context, self.document.ids[place : place + self.size])

    def _others(self, tokens: int, own: int) -> "Iterator[Tensor]":
        """So many tokens of other documents; a longer memory holds all that a shorter one does."""
        missing = tokens
        pieces = self.data.others(self.document.name, own, self.seed)
        while missing:
            piece = next(pieces, None)
            if piece is None:
                raise LongFocusError(
                    f"The other documents of --data have no {tokens:,} tokens in pieces of {own:,}, the tokens of "
                    "--own. Give shorter --tokens, or more documents."
                )
            yield piece[:missing]
            missing -= min(missing, len(piece))


def row(records: Sequence[Record]) -> Row:
    own = {"own_tokens": records[0]["own_tokens"]} if "own_tokens" in records[0] else {}
    return {**loss_entries(records, "loss_at_shortest"), **own}


EXPERIMENT = Experiment(settings=PerplexitySettings, records=records, row=row, needs_memory=False)
