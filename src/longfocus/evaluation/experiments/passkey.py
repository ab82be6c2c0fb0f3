"""Pass keys: a number hidden in a long text, and asked for.

--text landmark is the prompt of Landmark Attention, which the paper uses: one pass key at a random place in a text that
says little. Every question is about a text of its own, which is read for it. --text plain hides --keys lines such as
"# The pass key of 'window_parser' is 48213." in source code, and --text hard four in every window, whose names share
their words; all questions are about one memory. Nobody can guess such a number: without memory accuracy is 0.
"""

import math
import re
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
    refuse_unreadable,
)
from longfocus.evaluation.intervals import share

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
LARGEST_KEY = 50_000
KEYS = 40
"""Hidden under --text plain, if nobody says how many."""
ANSWER_TOKENS = 10
"""Room for any tokenizer's five digits."""
_SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class PasskeySettings(Settings):
    """What is hidden where, and how much is asked."""

    text: Literal["landmark", "plain", "hard"] = "landmark"
    """The paper's prompt; a few keys in source code; four keys in every window of source code."""
    questions: int = 40
    """Keys asked for; under --text landmark a text is read for each."""
    keys: int | None = None
    """Keys hidden in the memory under --text plain; the default is 40."""
    file: Path | None = None
    """Hide keys in this text instead of the standard library's source code, under --text plain and hard."""

    def __post_init__(self) -> None:
        keys = KEYS if self.keys is None else self.keys
        if self.questions < 1 or keys < 1:
            raise LongFocusError(
                f"--questions and --keys must be at least 1. Got {self.questions} and {keys}."
            )
        refuse_unreadable(self.file)
        if self.keys is not None and self.text != "plain":
            raise LongFocusError(
                f"--keys {self.keys} would have no effect: --text {self.text} says itself how many keys are hidden. "
                "Give --text plain, or leave it out."
            )
        if self.file is not None and self.text == "landmark":
            raise LongFocusError(
                f"--file {self.file} would have no effect: --text landmark has a text of its own. Give --text plain or "
                "hard, or leave it out."
            )


def records(subject: "Subject", settings: PasskeySettings, cell: Cell) -> Iterator[Record]:
    """One for every question."""
    if settings.text == "landmark":
        return _landmark_records(subject, settings, cell)
    return _planted_records(subject, settings, cell)


def _landmark_records(
    subject: "Subject", settings: PasskeySettings, cell: Cell
) -> Iterator[Record]:
    rng = np.random.default_rng([cell["seed"], cell["tokens"]])
    filler = FILLER * _SAMPLE
    size = len(filler) / len(subject.tokenizer(filler, add_special_tokens=False)["input_ids"])
    characters = math.ceil(cell["tokens"] * size)
    subject.expected = cell["tokens"] * settings.questions
    question = subject.beginnings([QUESTION])
    for _ in range(settings.questions):
        key, before = int(rng.integers(1, LARGEST_KEY + 1)), int(rng.integers(characters + 1))
        text = landmark_text(key, before, characters - before)
        with subject.session() as session:
            subject.read(session, text, "landmark")
            tokens_read = session.tokens
            with subject.answering():
                answer = session.ask(question, ANSWER_TOKENS)[0].text
        with subject.session() as empty:
            guess = empty.ask(question, ANSWER_TOKENS)[0].text
        yield {
            "key": key,
            "depth": before / max(characters, 1),
            "tokens_read": tokens_read,
            "answer": answer,
            "is_right": first_number(answer) == key,
            "is_right_without_memory": first_number(guess) == key,
        }


def landmark_text(key: int, before: int, after: int) -> str:
    """The prompt but for its question, with so many characters of filler before and after the pass key."""
    filler = FILLER * (max(before, after) // len(FILLER) + 1)
    return "\n".join([TASK, filler[:before], KEY.format(key=key), filler[:after], ""])


def first_number(text: str) -> int | None:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else None


def _planted_records(subject: "Subject", settings: PasskeySettings, cell: Cell) -> Iterator[Record]:
    from longfocus.evaluation.passkey import Hidden, PasskeyTask, is_right
    from longfocus.evaluation.source_lines import words_of_names

    task = PasskeyTask(
        keys=(settings.keys or KEYS) if settings.text == "plain" else None,
        questions=settings.questions,
        seed=cell["seed"],
        file=settings.file,
    )
    words = words_of_names(subject.folder, settings.file)
    with subject.session() as session:
        hidden = Hidden(subject, session, task, words)
        hidden.read(cell["tokens"], is_crowded_refused=settings.text == "plain")
        asked = hidden.choose()
        answers = hidden.ask(asked)
        guesses, looks = hidden.guess(asked), hidden.looks(asked, answers)
        for key, answer, guess, look in zip(asked, answers, guesses, looks, strict=True):
            yield {
                "key": key.digits,
                "name": key.name,
                "place": f"{key.file}:{key.line}",
                "tokens_read": session.tokens,
                "keys": len(hidden.keys),
                "answer": answer.text,
                "is_right": is_right(key, answer),
                "is_right_without_memory": is_right(key, guess),
                "looked_at": look.place,
                "looked_at_answer": look.is_right,
            }


def row(records: Sequence[Record]) -> Row:
    looked = [own["looked_at_answer"] for own in records if "looked_at_answer" in own]
    without = share(own["is_right_without_memory"] for own in records)
    return {
        **share(own["is_right"] for own in records),
        "questions": len(records),
        "tokens_read": round(fmean(own["tokens_read"] for own in records)),
        "accuracy_without_memory": without["accuracy"],
        **({"looked_at_answer": share(looked)["accuracy"]} if looked else {}),
    }


EXPERIMENT = Experiment(settings=PasskeySettings, records=records, row=row)
