"""One long text and questions about lines that are hidden in it, the same for every method that is to answer them.

needle     secret numbers of names that have nothing in common (needles.py)
records    one field of one of several entities with the same fields and similar names (core/records_task.py)
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from longfocus.core.records_task import Fact, draw_facts
from longfocus.evaluation.haystack import DIGITS, draw_names, refuse_few_words
from longfocus.evaluation.hidden_lines import HiddenLine, hidden_in, ids_of, lines_under
from longfocus.evaluation.methods import Asked
from longfocus.evaluation.needles import SPARE_TOKENS, WORDINGS, filled_in, is_in
from longfocus.evaluation.source_lines import words_of_names
from longfocus.inference.prompts import Prompts, message, starting_ids

if TYPE_CHECKING:
    from longfocus.evaluation.experiments.benefit import BenefitSettings
    from longfocus.evaluation.subject import Subject

TEXT = "\ue000text\ue001"
"""Stands for the text in a chat template."""


@dataclass(frozen=True)
class Question:
    """One, and how its answer is judged."""

    text: str
    line: str
    """What is hidden."""
    expected: str
    is_right: Callable[[str], bool]


@dataclass(frozen=True)
class Exam:
    """A text and what is asked about it."""

    ids: Int[Tensor, " tokens"]
    questions: Sequence[Question]
    is_continued: bool
    """Whether a question is the beginning of a line, which no chat template may stand around."""

    def asked(self, subject: "Subject") -> list[Asked]:
        """The questions as token ids."""
        return [_asked(subject, question.text, self.is_continued) for question in self.questions]

    def room(self, tokenizer: Any) -> int:
        """Tokens of an answer: whoever is asked in a sentence may repeat the whole line first."""
        texts = [own.expected if self.is_continued else own.line for own in self.questions]
        return max(len(ids_of(text, tokenizer)) for text in texts) + SPARE_TOKENS


def needle(subject: "Subject", settings: "BenefitSettings", cell: Any, window: int) -> Exam:
    """As many needles as questions, and distractors of other names, anywhere."""
    rng, wording = _generator(cell), WORDINGS[settings.wording]
    words, hidden = words_of_names(subject.folder), settings.questions + settings.distractors
    refuse_few_words(words, hidden)
    names = draw_names(words, rng)
    drawn = [(next(names), "".join(map(str, rng.integers(10, size=DIGITS)))) for _ in range(hidden)]
    questions = [
        Question(
            filled_in(wording.question, name, ""),
            filled_in(wording.needle, name, value),
            value,
            partial(is_in, value),
        )
        for name, value in drawn
    ]
    lines = [question.line for question in questions]
    ids = _text(subject, settings, cell, lines, window)
    return Exam(ids, questions[: settings.questions], settings.wording == "passkey")


def records(subject: "Subject", settings: "BenefitSettings", cell: Any, window: int) -> Exam:
    """All facts of some entities anywhere; some of them are asked for."""
    rng, words = Random(int(_generator(cell).integers(2**31))), words_of_names(subject.folder)
    # no word is both part of a name and a value
    facts = draw_facts(
        rng,
        words[::2],
        words[1::2],
        entities=settings.entities,
        wording=settings.record_wording,
    )
    lines = [fact.line for fact in facts]
    ids = _text(subject, settings, cell, lines, window)
    chosen = rng.sample(facts, min(settings.questions, len(facts)))
    judge = ends_with_quote if settings.record_wording == "code" else says_first
    questions = [_about(fact, judge) for fact in chosen]
    return Exam(ids, questions, settings.record_wording == "code")


def _about(fact: Fact, judge: Callable[[str, str], bool]) -> Question:
    return Question(fact.question, fact.line, fact.answer, partial(judge, fact.answer))


def ends_with_quote(expected: str, answer: str) -> bool:
    """Whether what was written up to the closing quote is what is expected, letter by letter."""
    found, quote, _ = answer.partition('"')
    return bool(quote) and found == expected


def says_first(expected: str, answer: str) -> bool:
    """Whether the first sentence of an answer holds what is expected, in whole words, whatever the case."""
    return is_in(expected, re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0])


def _generator(cell: Any) -> np.random.Generator:
    """The same for all methods of a cell."""
    return np.random.default_rng([cell["seed"], cell["tokens"], *cell["task"].encode()])


def _text(
    subject: "Subject", settings: "BenefitSettings", cell: Any, lines: Sequence[str], window: int
) -> Tensor:
    places = _generator(cell).random(len(lines)).tolist()
    hidden = [HiddenLine(place, line) for place, line in zip(places, lines, strict=True)]
    text = lines_under(settings.text, subject.tokenizer, cell["seed"])
    ids = hidden_in(text, hidden, cell["tokens"], window, subject.tokenizer)
    subject.costs.text_repeated = text.repeated
    return ids


def _asked(subject: "Subject", question: str, is_continued: bool) -> Asked:
    tokenizer = subject.tokenizer
    behind = question if question.startswith("\n") else f"\n{question}"
    if is_continued or not Prompts(tokenizer, None).has_template:
        head, tail = _beginning(tokenizer), behind
    else:
        rendered = tokenizer.apply_chat_template(
            [message("user", TEXT + behind)], add_generation_prompt=True, tokenize=False
        )
        before, _, tail = rendered.partition(TEXT)
        head = ids_of(before, tokenizer)
    prefix = list(starting_ids(subject.window_prefix, tokenizer))
    if head[: len(prefix)] != prefix:
        head = prefix + head
    # what stands before its last line is there for the model, and says nothing of what is asked
    return Asked(head, ids_of(tail, tokenizer), question.splitlines()[-1])


def _beginning(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text, a BOS say."""
    bare, whole = ids_of("a", tokenizer), list(tokenizer("a")["input_ids"])
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(bare)] == bare), [])
