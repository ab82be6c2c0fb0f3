"""Dictionary lookup in a memory of growing length (the paper's section 5.1), through the public API only.

    memory     N tokens of records, read window by window
    questions  25 in a 256-token window, drawn without repetition from the whole memory

Accuracy is the share of right answer tokens, each predicted from the true tokens before it, over questions that
have one right answer: a key that occurs twice in the memory has none (with uniform keys 12% of them at 16M tokens).
Whole answers are generated from the bare question. Without memory the same model can only guess: 1 in 60.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.core.labels import NO_LOSS
from longfocus.errors import LongFocusError

LENGTHS = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
DOCUMENT_TOKENS = 1_048_576
"""Longer memories are several documents."""
FEWEST_ANSWER_TOKENS = 1000
_ROWS_TOGETHER = 4

ReadingProgress = Callable[[int, int], None]
"""Called with the tokens in memory and the tokens wanted."""


@dataclass(frozen=True, kw_only=True)
class DictionaryTask:
    """What is put into the memory and how much is asked."""

    lengths: tuple[int, ...] = LENGTHS
    """Tokens of memory, growing; each length goes on from the one before."""
    questions: int = 300
    """Asked at every length as far as its memory has so many records, in whole windows of 25."""
    whole_answers: int = 50
    """Questions whose whole answer is generated."""
    seed: int = 2026
    """Of memory and questions. Nothing was ever chosen by results on this seed."""


@dataclass(frozen=True, kw_only=True)
class DictionaryResult:
    """Measured at one length; accuracies are shares 0..1 over unambiguous questions."""

    tokens: int
    """Tokens in memory."""
    answer_tokens: int
    """Answer tokens of unambiguous questions, the base of `accuracy`."""
    accuracy: float
    accuracy_without_memory: float
    """The same model and questions with nothing in memory."""
    whole_answers: int
    """Answers generated."""
    whole_answer_accuracy: float
    """Share of generated answers whose 4 tokens are all right."""
    ambiguous: float
    """Share of the asked keys that occur more than once in the memory."""
    reading_tokens_per_second: float
    """Over everything read so far."""
    seconds_per_answer: float
    """Of a generated answer, in a batch of all of them."""
    memory_bytes: int


def evaluate_dictionary(
    model: Any,
    settings: DictionaryTask | None = None,
    *,
    report: ReadingProgress = lambda done, wanted: None,
) -> Iterator[DictionaryResult]:
    """Yield one result per length, shortest first, for a model trained by `longfocus train dictionary`."""
    settings = settings or DictionaryTask()
    if not settings.lengths or min(settings.lengths) < 1:
        raise LongFocusError(
            f"lengths must hold at least one number of tokens, each 1 or more. Got {settings.lengths}. "
            "Leave it out for 1K to 1M."
        )
    lengths = sorted(set(settings.lengths))
    memory = task.draw_memory(lengths[-1], settings.seed)
    filled = _Filled(model, memory)
    for length in lengths:
        filled.read(length, report)
        first = _ask(filled, settings)
        yield _result(filled, settings, [first, *_more_memories(filled, settings, first)])


class _Filled:
    """A memory that is filled up to one length after another."""

    def __init__(self, model: Any, memory: task.Records) -> None:
        self.model, self.memory = model, memory
        self.documents: list[Any] = []
        self.windows = 0
        self.seconds = 0.0

    @property
    def tokens(self) -> int:
        return self.windows * task.WINDOW

    @property
    def records(self) -> task.Records:
        """What has been read."""
        return self.memory.take(torch.arange(self.windows * task.RECORDS_PER_WINDOW))

    def read(self, tokens: int, report: ReadingProgress) -> None:
        """Read on until at least `tokens` tokens are in memory."""
        from longfocus import read_document

        last = -(-tokens // task.WINDOW)
        started = time.perf_counter()
        while self.windows < last:
            end = min(last, self.windows + DOCUMENT_TOKENS // task.WINDOW)
            ids = task.memory_windows(self.memory, self.windows, end).flatten()
            before = self.tokens
            document = read_document(
                self.model,
                None,
                ids,
                progress=lambda done, _, before=before: report(before + done, tokens),
            )
            self.documents.append(document)
            self.windows = end
        self.seconds += time.perf_counter() - started


class _Answers(NamedTuple):
    """What was asked about one memory and how it was answered."""

    asked: task.Records
    is_clear: Bool[Tensor, " questions"]
    right: Bool[Tensor, "clear 4"]
    guessed: Bool[Tensor, "clear 4"]


def _ask(filled: _Filled, settings: DictionaryTask) -> _Answers:
    """Ask for records from the whole memory, none twice, in whole windows; with the memory and without."""
    present = filled.records
    generator = torch.Generator().manual_seed(settings.seed + filled.windows)
    windows = min(settings.questions, len(present.keys)) // task.RECORDS_PER_WINDOW
    places = torch.randperm(len(present.keys), generator=generator)[
        : windows * task.RECORDS_PER_WINDOW
    ]
    asked = present.take(places)
    is_clear = ~task.is_ambiguous(present.keys)[places]
    right = answers_right(filled.model, asked, filled.documents)[is_clear]
    guessed = answers_right(filled.model, asked, [])[is_clear]
    return _Answers(asked, is_clear, right, guessed)


def _more_memories(
    filled: _Filled, settings: DictionaryTask, first: _Answers
) -> Iterator[_Answers]:
    """Other memories of the same length, while a short one holds too few records to ask enough."""
    answered, number = first.right.numel(), 0
    while answered < min(FEWEST_ANSWER_TOKENS, settings.questions * task.KEY_LENGTH):
        number += 1
        other = replace(settings, seed=settings.seed + 1_000_000 * number)
        again = _Filled(filled.model, task.draw_memory(filled.tokens, other.seed))
        again.read(filled.tokens, lambda done, wanted: None)
        answers = _ask(again, other)
        answered += answers.right.numel()
        yield answers


def _result(filled: _Filled, settings: DictionaryTask, answers: list[_Answers]) -> DictionaryResult:
    right = torch.cat([part.right for part in answers])
    first = answers[0]
    generated = first.asked.take(first.is_clear.nonzero()[: settings.whole_answers, 0])
    started = time.perf_counter()
    whole = whole_answers_right(filled.model, generated, filled.documents)
    seconds = time.perf_counter() - started
    return DictionaryResult(
        tokens=filled.tokens,
        answer_tokens=right.numel(),
        accuracy=right.float().mean().item(),
        accuracy_without_memory=torch.cat([part.guessed for part in answers]).float().mean().item(),
        whole_answers=len(whole),
        whole_answer_accuracy=whole.float().mean().item(),
        ambiguous=1 - torch.cat([part.is_clear for part in answers]).float().mean().item(),
        reading_tokens_per_second=filled.tokens / max(filled.seconds, 1e-9),
        seconds_per_answer=seconds / max(len(whole), 1),
        memory_bytes=sum(document.nbytes for document in filled.documents),
    )


@torch.inference_mode()
def answers_right(
    model: Any, asked: task.Records, documents: Sequence[Any]
) -> Bool[Tensor, "questions 4"]:
    """Which answer tokens the model predicts, each from the true tokens before it; whole windows of 25 questions."""
    from longfocus import FocusCache

    windows = task.to_windows(asked, task.QUESTION_MARK, task.RECORDS_PER_WINDOW, task.WINDOW)
    is_answer = task.answer_labels(windows, task.RECORDS_PER_WINDOW)[:, 1:] != NO_LOSS
    right = []
    for rows in torch.arange(len(windows)).split(_ROWS_TOGETHER):
        cache = FocusCache(model, documents=documents)
        logits = model(input_ids=windows[rows], past_key_values=cache).logits
        right.append((logits[:, :-1].argmax(-1) == windows[rows, 1:])[is_answer[rows]])
    return torch.cat(right).view(-1, task.KEY_LENGTH)


@torch.inference_mode()
def whole_answers_right(
    model: Any, asked: task.Records, documents: Sequence[Any]
) -> Bool[Tensor, " questions"]:
    """Which answers are right in all 4 tokens when they are generated greedily from `<q> k1..k4 <v>`."""
    from longfocus import FocusCache

    tokens = task.to_tokens(asked, task.QUESTION_MARK)
    prompts = tokens[:, : -task.KEY_LENGTH]
    cache = FocusCache(model, documents=documents)
    output = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        past_key_values=cache,
        max_new_tokens=task.KEY_LENGTH,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=task.PAD,
    )
    return (output == tokens).all(1)
