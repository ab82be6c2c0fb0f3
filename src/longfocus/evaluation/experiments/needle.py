"""A needle in a haystack: a sentence hidden at each of several depths of a text of growing length, and asked for.

Every length is measured at --depths places with every seed: that is a cell, with a text of its own. --needles
sentences stand in the same part of it and are all asked for; --distractors more, of other names, stand anywhere. Names
and numbers are drawn from the seed, so that nobody can guess them: without memory accuracy is 0. --wording passkey
hides the lines that the shipped model `code` knows. --needle, --question and --answer are texts of your own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import (
    Cell,
    Experiment,
    Record,
    Row,
    Settings,
    lengths_and_seeds,
    refuse_unreadable,
)
from longfocus.evaluation.intervals import share

if TYPE_CHECKING:
    from longfocus.evaluation.needles import Wording
    from longfocus.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class NeedleSettings(Settings):
    """What is hidden where, and what is asked."""

    depths: int = 5
    """Parts of the text, equally long, in which the needles stand one after the other."""
    needles: int = 1
    """Sentences in that part; each is asked for."""
    distractors: int = 0
    """Sentences of other names anywhere in the text, which nobody asks for."""
    wording: Literal["sentence", "passkey"] = "sentence"
    """An English sentence, or the pass-key lines of the model `code`."""
    needle: str | None = None
    """Sentence to hide; {name} stands for the words of a name, {value} for the digits of a number."""
    question: str | None = None
    """Question, or beginning of a line, whose answer is in the needle; {name} as there."""
    answer: str | None = None
    """What a right answer holds, in whole words: {value} or a text of your own."""
    file: Path | None = None
    """Hide needles in this text instead of the standard library's source code."""

    def __post_init__(self) -> None:
        if min(self.depths, self.needles) < 1 or self.distractors < 0:
            raise LongFocusError(
                "--depths and --needles must be at least 1, and --distractors 0 or more. Got "
                f"{self.depths}, {self.needles} and {self.distractors}."
            )
        refuse_unreadable(self.file)
        self._check_texts()

    def _check_texts(self) -> None:
        given = [text for text in (self.needle, self.question, self.answer) if text is not None]
        if len(given) not in (0, 3) or not all(map(str.strip, given)):
            raise LongFocusError(
                "--needle, --question and --answer belong together. Give all three, or none for a secret number."
            )
        is_one = self.needles == 1 and not self.distractors
        names = {"{name}" in text for text in (self.needle, self.question) if text is not None}
        if names == {True, False} or (names == {False} and not is_one):
            raise LongFocusError(
                "Several needles, or distractors, can only be told apart by their names. Put {name} into --needle and "
                "--question, or into neither of them and hide one needle."
            )


def cells(settings: NeedleSettings) -> Iterator[Cell]:
    for cell in lengths_and_seeds(settings):
        for depth in range(settings.depths):
            yield {**cell, "depth": (depth + 0.5) / settings.depths}


def records(subject: "Subject", settings: NeedleSettings, cell: Cell) -> Iterator[Record]:
    """One for every needle."""
    from longfocus.evaluation.needles import (
        SPARE_TOKENS,
        WORDINGS,
        Hiding,
        filled_in,
        in_band,
        is_in,
    )

    wording = _wording(settings)
    seed = np.random.default_rng([cell["seed"], cell["tokens"], int(cell["depth"] * 10**6)])
    hiding = Hiding(subject, settings, wording, int(seed.integers(2**31)))
    asked = in_band(hiding.rng, settings.needles, cell["depth"], settings.depths)
    others = hiding.rng.random(settings.distractors).tolist()
    with subject.session() as session, subject.session() as empty:
        pieces, needles = hiding.hide(cell["tokens"], asked, others)
        for number, piece in enumerate(pieces):
            subject.read(session, piece.text, str(number))
        keys = [needle.key for needle in needles]
        questions = [filled_in(wording.question, key.name, "") for key in keys]
        hidden = [filled_in(wording.needle, key.name, key.digits) for key in keys]
        room = max(map(len, subject.tokenizer(hidden)["input_ids"])) + SPARE_TOKENS
        is_line = wording is WORDINGS["passkey"]
        given = subject.beginnings(questions) if is_line else questions
        with subject.answering():
            answers = session.ask(given, room)
        guesses = empty.ask(given, room)
        for needle, answer, guess in zip(needles, answers, guesses, strict=True):
            expected = filled_in(wording.answer, needle.key.name, needle.key.digits)
            yield {
                "name": needle.key.name,
                "expected": expected,
                "stands_at": needle.depth,
                "place": f"{needle.key.file}:{needle.key.line}",
                "tokens_read": session.tokens,
                "answer": answer.text,
                "is_right": is_in(expected, answer.text),
                "is_right_without_memory": is_in(expected, guess.text),
            }


def _wording(settings: NeedleSettings) -> "Wording":
    from longfocus.evaluation.needles import WORDINGS, Wording

    if settings.needle is None or settings.question is None or settings.answer is None:
        return WORDINGS[settings.wording]
    return Wording(settings.needle, settings.question, settings.answer)


def row(records: Sequence[Record]) -> Row:
    without = share(own["is_right_without_memory"] for own in records)
    return {
        **share(own["is_right"] for own in records),
        "questions": len(records),
        "tokens_read": round(fmean(own["tokens_read"] for own in records)),
        "accuracy_without_memory": without["accuracy"],
    }


EXPERIMENT = Experiment(settings=NeedleSettings, records=records, row=row, cells=cells)
