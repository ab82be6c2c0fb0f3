"""Dictionary lookup (the paper's section 5.1): records of 4 symbols and their values, asked from the whole memory.

For models of `longfocus train dictionary`. Accuracy is the share of right answer tokens, over questions that have one
right answer; without memory the same model can only guess, 1 in 60.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Cell, Experiment, Record, Row, Settings
from longfocus.evaluation.intervals import share

if TYPE_CHECKING:
    from longfocus.evaluation.dictionary import Answers
    from longfocus.evaluation.subject import Subject

ANSWER_TOKENS, WINDOW_QUESTIONS = 4, 25


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(Settings):
    """How much is asked."""

    questions: int = 300
    """Asked of every memory, in whole windows of 25; of a short memory all that it holds, and of more such memories."""
    whole_answers: int = 50
    """Questions whose whole answer is generated, too."""

    def __post_init__(self) -> None:
        if self.questions < WINDOW_QUESTIONS or self.whole_answers < 0:
            raise LongFocusError(
                f"--questions must be at least {WINDOW_QUESTIONS}, those of a window, and --whole-answers 0 or more. "
                f"Got {self.questions} and {self.whole_answers}."
            )


def records(subject: "Subject", settings: DictionarySettings, cell: Cell) -> Iterator[Record]:
    """One for every question."""
    from torch import int64, tensor

    from longfocus.evaluation.dictionary import Filled, answers, whole_answers_right

    with subject.session() as session:
        filled = Filled(subject, session, cell["tokens"], cell["seed"])
        filled.read(cell["tokens"])
        for number, given in enumerate(answers(filled, settings.questions)):
            found = list(_records(given, number))
            if number == 0:
                clear = [place for place, own in enumerate(found) if not own["is_ambiguous"]]
                chosen = clear[: settings.whole_answers]
                with subject.answering():
                    whole = whole_answers_right(
                        session, given.asked.take(tensor(chosen, dtype=int64))
                    )
                for place, is_right in zip(chosen, whole.tolist(), strict=True):
                    found[place]["whole_answer_right"] = is_right
            yield from found


def _records(given: "Answers", memory: int) -> Iterator[Row]:
    keys, values = given.asked.keys.tolist(), given.asked.values.tolist()
    counts = given.right.sum(1).tolist(), given.guessed.sum(1).tolist()
    of_questions = zip(keys, values, given.is_clear.tolist(), *counts, strict=True)
    for key, value, is_clear, right, guessed in of_questions:
        yield {
            "memory": memory,
            "key": key,
            "value": value,
            "is_ambiguous": not is_clear,
            "right": right,
            "right_without_memory": guessed,
        }


def row(records: Sequence[Record]) -> Row:
    clear = [own for own in records if not own["is_ambiguous"]]
    whole = [own["whole_answer_right"] for own in clear if "whole_answer_right" in own]
    guessed = share(own["right_without_memory"] / ANSWER_TOKENS for own in clear)
    return {
        **share(own["right"] / ANSWER_TOKENS for own in clear),
        "questions": len(clear),
        "accuracy_without_memory": guessed["accuracy"],
        "whole_answer_accuracy": share(whole)["accuracy"],
        "ambiguous": 1 - len(clear) / len(records) if records else None,
    }


EXPERIMENT = Experiment(
    settings=DictionarySettings, records=records, row=row, has_texts=False, model="dictionary"
)
