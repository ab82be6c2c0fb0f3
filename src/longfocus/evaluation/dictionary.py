"""Dictionary lookup in a memory of growing length (the paper's section 5.1), through the public API only.

    memory     N tokens of records, read window by window
    questions  25 in a 256-token window, drawn without repetition from the whole memory

Accuracy is the share of right answer tokens, each predicted from the true tokens before it, over questions that
have one right answer: a key that occurs twice in the memory has none (with uniform keys 12% of them at 16M tokens).
Whole answers are generated from the bare question. Without memory the same model can only guess: 1 in 60.

Here is what `longfocus evaluate dictionary` (experiments/dictionary.py) and the demo have in common, and the demo's
walk from length to length in one memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.core.labels import NO_LOSS
from longfocus.errors import LongFocusError
from longfocus.evaluation.stream import Stream
from longfocus.evaluation.subject import Subject
from longfocus.hf.cache import FocusCache
from longfocus.inference.session import Session

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
    subject, length = Subject(model), 0
    subject.begin({}, lambda done, text: report(min(done, length), length))
    with subject.session() as session:
        filled = Filled(subject, session, lengths[-1], settings.seed)
        for length in lengths:
            filled.read(length)
            yield _result(filled, settings)


class Filled:
    """A memory of records that is filled up to one length after another."""

    def __init__(self, subject: Subject, session: Session, tokens: int, seed: int) -> None:
        self.subject, self.session, self.seed = subject, session, seed
        self.memory = task.draw_memory(tokens, seed)
        self.windows = 0
        self.reading_seconds = 0.0

    @property
    def tokens(self) -> int:
        return self.windows * task.WINDOW

    @property
    def records(self) -> task.Records:
        """What has been read."""
        return self.memory.take(torch.arange(self.windows * task.RECORDS_PER_WINDOW))

    def read(self, tokens: int) -> None:
        """Read on until at least `tokens` tokens are in memory."""
        last, before = -(-tokens // task.WINDOW), self.subject.costs.reading_seconds
        while self.windows < last:
            end = min(last, self.windows + DOCUMENT_TOKENS // task.WINDOW)
            ids = task.memory_windows(self.memory, self.windows, end).flatten()
            self.subject.read(self.session, ids, f"windows {self.windows} to {end}")
            self.windows = end
        self.reading_seconds += self.subject.costs.reading_seconds - before


class Answers(NamedTuple):
    """What was asked about one memory and how it was answered."""

    asked: task.Records
    is_clear: Bool[Tensor, " questions"]
    """Which questions have one right answer."""
    right: Bool[Tensor, "questions 4"]
    guessed: Bool[Tensor, "questions 4"]
    """The same with nothing in memory."""


def answers(filled: Filled, questions: int) -> Iterator[Answers]:
    """Ask so many questions about a memory; a short one holds too few records, so others of its length follow."""
    first = _ask(filled, questions)
    yield first
    answered, number = first.right.numel(), 0
    # what was asked for, in whole windows
    wanted = questions // task.RECORDS_PER_WINDOW * task.RECORDS_PER_WINDOW
    while answered < min(FEWEST_ANSWER_TOKENS, wanted * task.KEY_LENGTH):
        number += 1
        with filled.subject.session() as session:
            seed = filled.seed + 1_000_000 * number
            other = Filled(filled.subject, session, filled.tokens, seed)
            other.read(filled.tokens)
            more = _ask(other, questions)
        answered += more.right.numel()
        yield more


def _ask(filled: Filled, questions: int) -> Answers:
    """Ask for records from the whole memory, none twice, in whole windows; with the memory and without."""
    present = filled.records
    generator = torch.Generator().manual_seed(filled.seed + filled.windows)
    windows = min(questions, len(present.keys)) // task.RECORDS_PER_WINDOW
    places = torch.randperm(len(present.keys), generator=generator)[
        : windows * task.RECORDS_PER_WINDOW
    ]
    asked = present.take(places)
    is_clear = ~task.is_ambiguous(present.keys)[places]
    with filled.subject.answering():
        right = answers_right(filled.session, asked)
    with filled.subject.session() as empty:
        return Answers(asked, is_clear, right, answers_right(empty, asked))


def _result(filled: Filled, settings: DictionaryTask) -> DictionaryResult:
    given = list(answers(filled, settings.questions))
    right = torch.cat([part.right[part.is_clear] for part in given]).float()
    guessed = torch.cat([part.guessed[part.is_clear] for part in given]).float()
    first, costs = given[0], filled.subject.costs
    generated = first.asked.take(first.is_clear.nonzero()[: settings.whole_answers, 0])
    before = costs.answering_seconds
    with filled.subject.answering():
        whole = whole_answers_right(filled.session, generated)
    return DictionaryResult(
        tokens=filled.tokens,
        answer_tokens=right.numel(),
        accuracy=right.mean().item(),
        accuracy_without_memory=guessed.mean().item(),
        whole_answers=len(whole),
        whole_answer_accuracy=whole.float().mean().item(),
        ambiguous=1 - torch.cat([part.is_clear for part in given]).float().mean().item(),
        reading_tokens_per_second=filled.tokens / max(filled.reading_seconds, 1e-9),
        seconds_per_answer=(costs.answering_seconds - before) / max(len(whole), 1),
        memory_bytes=filled.session.nbytes,
    )


@torch.inference_mode()
def answers_right(session: Session, asked: task.Records) -> Bool[Tensor, "questions 4"]:
    """Which answer tokens the model predicts, each from the true tokens before it; whole windows of 25 questions."""
    model = session.model
    windows = task.to_windows(asked, task.QUESTION_MARK, task.RECORDS_PER_WINDOW, task.WINDOW)
    is_answer = task.answer_labels(windows, task.RECORDS_PER_WINDOW)[:, 1:] != NO_LOSS
    right = []
    for rows in windows.split(_ROWS_TOGETHER):
        given = rows.to(model.device)
        logits = model(input_ids=given, past_key_values=_cache(session, len(rows))).logits
        right.append((logits[:, :-1].argmax(-1) == given[:, 1:]).cpu())
    return torch.cat(right)[is_answer].view(-1, task.KEY_LENGTH)


@torch.inference_mode()
def whole_answers_right(session: Session, asked: task.Records) -> Bool[Tensor, " questions"]:
    """Which answers are right in all 4 tokens when they are generated greedily from `<q> k1..k4 <v>`."""
    tokens = task.to_tokens(asked, task.QUESTION_MARK)
    if not len(tokens):
        return torch.empty(0, dtype=torch.bool)
    prompts = tokens[:, : -task.KEY_LENGTH].to(session.model.device)
    if isinstance(session, Stream):
        # `generate` wants all ids, and leaves out those that the cache has seen
        prompts = torch.cat([session.ids.to(prompts).expand(len(prompts), -1), prompts], 1)
    output = session.model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        past_key_values=_cache(session, len(prompts)),
        max_new_tokens=task.KEY_LENGTH,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=task.PAD,
    )
    return (output[:, -task.RECORD_LENGTH :].cpu() == tokens).all(1)


def _cache(session: Session, rows: int) -> FocusCache:
    return session.for_rows(rows) if isinstance(session, Stream) else session.cache()
