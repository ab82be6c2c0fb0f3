"""Few-shot learning (the paper's TREC and WebQS): labelled examples are read into memory, others are asked for.

As many examples as --tokens holds are demonstrations in memory; the questions are others, each in a window of its own.
The answer is the likeliest of all labels, or with --free what the model writes. Every seed draws its own questions and
demonstrations; an example with the text of a question is never shown. With one seed a longer memory holds those of a
shorter one and more, and the questions are the same. Without memory they have no demonstration at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Cell, Experiment, Record, Row, Settings
from longfocus.evaluation.intervals import share
from longfocus.evaluation.labelled import Example, load

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject
    from longfocus.inference.session import Session

SPARE_TOKENS = 8
TEXT, LABEL = "{text}", "{label}"


@dataclass(frozen=True, kw_only=True)
class FewshotSettings(Settings):
    """What is shown, and what is asked."""

    tokens: tuple[str, ...] = ("2K", "8K")
    """Tokens of demonstrations at most, such as 2K 8K; 1K is 1024 tokens."""
    data: str = ""
    """File .jsonl, .csv or .tsv of labelled texts, or the name of a Hugging Face dataset."""
    split: str = "train"
    """Of a dataset."""
    text_field: str = "text"
    """Name of the field that holds the text."""
    label_field: str = "label"
    """Name of the field that holds the label; a list holds several right ones."""
    template: str = "Text: {text}\nLabel: {label}\n\n"
    """A demonstration; a question is what stands before {label} in it."""
    questions: int = 100
    """Examples that are asked for, drawn from the data; the others may be demonstrations."""
    free: bool = False
    """Let the model write its answer, instead of choosing the likeliest of all labels. Case and punctuation do not
    count then."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LongFocusError(
                "There are no labelled texts. Give --data a file .jsonl, .csv or .tsv, or the name of a dataset."
            )
        if self.questions < 1:
            raise LongFocusError(f"--questions must be at least 1. Got {self.questions}.")
        before, found, behind = self.template.partition(LABEL)
        if not found or TEXT not in before or TEXT in behind or LABEL in behind:
            raise LongFocusError(
                f"--template must hold {TEXT}, and behind it {LABEL}. Got {self.template!r}."
            )


@dataclass(frozen=True)
class _Drawn:
    """The examples of one cell."""

    questions: list[Example]
    others: list[Example]
    """Those that may be shown: none has the text of a question."""
    dropped: int
    """So many others have it."""
    labels: list[str]
    """All that occur in the data."""


def records(subject: "Subject", settings: FewshotSettings, cell: Cell) -> Iterator[Record]:
    """One for every question."""
    drawn = _draw(settings, cell["seed"])
    shown = _demonstrations(subject, settings, drawn, cell["tokens"])
    with subject.session() as session, subject.session() as empty:
        text = "".join(_filled(settings, example) for example in shown)
        subject.read(session, text, "demonstrations")
        with subject.answering():
            answers = _answers(subject, session, settings, drawn)
        guesses = _answers(subject, empty, settings, drawn)
        for example, answer, guess in zip(drawn.questions, answers, guesses, strict=True):
            yield {
                "text": example.text,
                "labels": list(example.labels),
                "answer": answer,
                "is_right": _is_right(settings, example, answer),
                "is_right_without_memory": _is_right(settings, example, guess),
                "demonstrations": len(shown),
                "dropped": drawn.dropped,
                "tokens_read": session.tokens,
                "choices": None if settings.free else len(drawn.labels),
            }


def _draw(settings: FewshotSettings, seed: int) -> _Drawn:
    examples = load(settings.data, settings.split, settings.text_field, settings.label_field)
    if settings.free:
        _refuse_empty_labels(settings.data, examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    mixed = [examples[place] for place in order]
    questions, rest = mixed[: settings.questions], mixed[settings.questions :]
    asked = {example.text for example in questions}
    others = [example for example in rest if example.text not in asked]
    if not others:
        raise LongFocusError(
            f"--data {settings.data} has {len(examples)} examples: {len(questions)} of them are questions, and "
            f"{len(rest)} have the text of a question. Some must be left to be shown. Give fewer --questions, or data "
            "with more texts."
        )
    labels = sorted({example.labels[0] for example in examples})
    return _Drawn(questions, others, len(rest) - len(others), labels)


def _refuse_empty_labels(data: str, examples: Sequence[Example]) -> None:
    """Raise LongFocusError for a label that no answer at all would be equal to."""
    for label in (label for example in examples for label in example.labels):
        if not _plain(label):
            raise LongFocusError(
                f"--free compares answers without case and punctuation. Got the label {label!r} in --data {data}, of "
                "which nothing is left. Labels need a letter or digit. Leave out --free, or change the data."
            )


def _demonstrations(
    subject: "Subject", settings: FewshotSettings, drawn: _Drawn, tokens: int
) -> list[Example]:
    """Those that find room in so many tokens."""
    shown, used = [], 0
    for example in drawn.others:
        text = _filled(settings, example)
        used += len(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
        if used > tokens:
            break
        shown.append(example)
    if not shown:
        raise LongFocusError(
            f"No example finds room in {tokens} tokens. Give a larger number of --tokens."
        )
    return shown


def _filled(settings: FewshotSettings, example: Example) -> str:
    before, _, behind = settings.template.partition(LABEL)
    return before.replace(TEXT, example.text) + example.labels[0] + behind


def _answers(
    subject: "Subject", session: "Session", settings: FewshotSettings, drawn: _Drawn
) -> list[str]:
    before, _, behind = settings.template.partition(LABEL)
    asked = before.rstrip(" ")
    questions = [asked.replace(TEXT, example.text) for example in drawn.questions]
    if settings.free:
        longest = subject.tokenizer([label for own in drawn.questions for label in own.labels])
        room = max(map(len, longest["input_ids"])) + SPARE_TOKENS
        return [answer.text for answer in session.ask(questions, room)]
    from longfocus.evaluation.choosing import likeliest

    # the space before a label belongs to its first token, and what ends it tells labels from their beginnings
    ends = [before[len(asked) :] + label + behind for label in drawn.labels]
    return [
        drawn.labels[likeliest(session, subject.tokenizer, question, ends)]
        for question in questions
    ]


def _is_right(settings: FewshotSettings, example: Example, answer: str) -> bool:
    if not settings.free:
        return answer in example.labels
    first = next(iter(answer.strip().splitlines()), "")
    return _plain(first) in set(map(_plain, example.labels))


def _plain(text: str) -> str:
    """Without what an answer may differ in: case, spaces, the end of a sentence."""
    return " ".join(text.casefold().split()).strip(" .,;:!\"'")


def row(records: Sequence[Record]) -> Row:
    without = share(own["is_right_without_memory"] for own in records)
    first = records[0]
    return {
        **share(own["is_right"] for own in records),
        "questions": len(records),
        "accuracy_without_memory": without["accuracy"],
        "demonstrations": first["demonstrations"],
        "dropped": first["dropped"],
        "tokens_read": first["tokens_read"],
        **({} if first["choices"] is None else {"choices": first["choices"]}),
    }


EXPERIMENT = Experiment(settings=FewshotSettings, records=records, row=row)
