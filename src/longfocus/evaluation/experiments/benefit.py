"""Does a memory help? The same questions and the same held-out tokens for the same model, by what it has before them.

truncated: the last tokens of the text in the prompt; full: all of them, up to the model's positions; memory: the last
ones in the prompt, those before them read into memory; memory_only: all read into memory; bm25: the chunks of the text
that BM25 ranks best. All but full have --budget tokens at most in their prompt, with question and answer. Tasks:
needle, hidden numbers; records, one field of one of several entities that are alike; loss, the next tokens of held-out
documents of --text. A memory that nobody has trained is measured with --memory-layers and --window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import (
    Cell,
    Experiment,
    Record,
    Row,
    Settings,
    lengths_and_seeds,
)
from longfocus.evaluation.intervals import loss_entries, share

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject

MethodName = Literal["truncated", "full", "memory", "memory_only", "bm25"]
TaskName = Literal["needle", "records", "loss"]


@dataclass(frozen=True, kw_only=True)
class BenefitSettings(Settings):
    """Which methods, and what of which text."""

    tokens: tuple[str, ...] = ("4K", "16K", "64K")
    """Lengths of the text, such as 4K 16K; 1K is 1024 tokens."""
    methods: tuple[MethodName, ...] = ("truncated", "full", "memory", "bm25")
    """What the model has before a question. One that the model cannot have gets a row that says why."""
    tasks: tuple[TaskName, ...] = ("needle", "records")
    """What is measured; loss needs --text."""
    text: tuple[Path, ...] = ()
    """Held-out text files and folders; the default for needle and records is the standard library's source code."""
    budget: int | None = None
    """Tokens of a prompt with question and answer; the default is the model's window, 256 where it has none."""
    chunk: int | None = None
    """Tokens of a chunk under bm25; the default is a quarter of --budget."""
    questions: int = 20
    """Asked about one text under needle and records."""
    distractors: int = 0
    """More needles of other names in the text, which nobody asks for."""
    wording: Literal["sentence", "passkey"] = "sentence"
    """Of needles: an English sentence, or the pass-key lines of the model `code`."""
    entities: int = 16
    """Of records, with four fields each; every field is a line of the text."""
    record_wording: Literal["sentence", "code"] = "sentence"
    """Of records: English sentences, or lines of source code for a language model of code."""
    evaluated: int | None = None
    """Tokens at the end of a window whose loss is measured; the default is half of --budget."""
    windows: int = 4
    """Evaluated in each document, evenly apart; fewer in one that is too short for that."""
    max_documents: int = 50
    """At most so many documents of --text."""

    def __post_init__(self) -> None:
        if missing := [path for path in self.text if not path.exists()]:
            raise LongFocusError(
                f"--text {missing[0]} is not there. Give files and folders of text."
            )
        if "loss" in self.tasks and not self.text:
            raise LongFocusError(
                "--tasks loss needs held-out documents, and --text is missing. Give text files, or folders of them."
            )
        least = {"questions": 1, "distractors": 0, "entities": 1, "windows": 1}
        least |= {"max_documents": 1, "budget": 1, "chunk": 1, "evaluated": 2}
        for name, smallest in least.items():
            given = getattr(self, name)
            if given is not None and given < smallest:
                raise LongFocusError(
                    f"--{name.replace('_', '-')} must be at least {smallest}. Got {given}."
                )


def cells(settings: BenefitSettings) -> Iterator[Cell]:
    """Every task at every length with every seed, by every method."""
    if not settings.methods or not settings.tasks:
        raise LongFocusError(
            "There is nothing to measure. Give --methods and --tasks at least one name each."
        )
    for task in dict.fromkeys(settings.tasks):
        for cell in lengths_and_seeds(settings):
            for method in dict.fromkeys(settings.methods):
                yield {"method": method, "task": task, **cell}


def records(subject: "Subject", settings: BenefitSettings, cell: Cell) -> Iterator[Record]:
    """One for every question or evaluated window; a single one with a note for what this model cannot have."""
    from longfocus.evaluation.budget import budget_of

    budget = budget_of(subject, settings.budget, settings.chunk)
    if cell["task"] == "loss":
        return _losses(subject, settings, cell, budget)
    return _answers(subject, settings, cell, budget)


def _answers(
    subject: "Subject", settings: BenefitSettings, cell: Cell, budget: Any
) -> Iterator[Record]:
    from longfocus.evaluation import questions
    from longfocus.evaluation.budget import why_not
    from longfocus.evaluation.methods import before_questions, text_room

    if note := why_not(subject, cell["method"], cell["tokens"]):
        yield {"note": note}
        return
    make = {"needle": questions.needle, "records": questions.records}[cell["task"]]
    # windows of a model without memory are as long as those that it is compared with
    window = subject.window if subject.has_memory else budget.tokens
    exam = make(subject, settings, cell, window - len(budget.prefix))
    asked, room = exam.asked(subject), exam.room(subject.tokenizer)
    left = text_room(budget, asked, room)
    if note := why_not(subject, cell["method"], len(exam.ids) + budget.tokens - left):
        yield {"note": note}
        return
    head = asked[0].head
    with before_questions(cell["method"], subject, budget, exam.ids, head, left) as held:
        answers = held.answers(asked, room)
    for question, answer, tokens in zip(exam.questions, answers, held.prompt_tokens, strict=True):
        yield {
            "question": question.text,
            "expected": question.expected,
            "answer": answer,
            "is_right": question.is_right(answer),
            "prompt_tokens": tokens,
        }


def _losses(
    subject: "Subject", settings: BenefitSettings, cell: Cell, budget: Any
) -> Iterator[Record]:
    """Of the tokens behind so much of their own document, and by truncated text beside every other method."""
    from longfocus.evaluation.budget import why_not
    from longfocus.evaluation.held_out import evenly

    size = _evaluated(settings, budget)
    prompt = len(budget.prefix) + cell["tokens"] + size
    if note := why_not(subject, cell["method"], prompt):
        yield {"note": note}
        return
    longest = settings.lengths[-1]
    chosen = _documents(subject, settings, longest + size, cell["seed"])
    places = [evenly(len(own.ids), longest, size, settings.windows) for own in chosen]
    subject.expected = sum(map(len, places)) * cell["tokens"]
    for document, begins in zip(chosen, places, strict=True):
        for place in begins:
            text = document.ids[place - cell["tokens"] : place]
            window = document.ids[place : place + size]
            loss, tokens = _loss(cell["method"], subject, budget, text, window)
            record = {
                "document": document.name,
                "place": place,
                "target_tokens": size - 1,
                "loss": loss,
                "prompt_tokens": tokens,
            }
            if cell["method"] != "truncated":
                with subject.costs_aside():
                    record["loss_truncated"], _ = _loss("truncated", subject, budget, text, window)
            yield record


def _loss(
    method: str, subject: "Subject", budget: Any, text: Any, window: Any
) -> tuple[float, int]:
    """Of all tokens of the window but the first, and the tokens of the prompt with them."""
    from longfocus.evaluation.contexts import mean_loss
    from longfocus.evaluation.methods import before_window

    with before_window(method, subject, budget, text, len(window)) as held:
        return mean_loss(held, window), held.prompt_tokens[0]


def _evaluated(settings: BenefitSettings, budget: Any) -> int:
    size = settings.evaluated or max(budget.text_window // 2, 2)
    if size > budget.text_window:
        raise LongFocusError(
            f"--evaluated {size} does not fit in a prompt of {budget.text_window} tokens. Give at most that many, or a "
            "larger --budget."
        )
    return size


def _documents(subject: "Subject", settings: BenefitSettings, at_least: int, seed: int) -> Any:
    from longfocus.evaluation.held_out import held_out

    found = held_out(settings.text, subject.tokenizer, "--text")
    return found.chosen(at_least, settings.max_documents, seed)


def row(records: Sequence[Record]) -> Row:
    if "note" in records[0]:
        return {"note": records[0]["note"]}
    prompt = {"prompt_tokens": round(fmean(own["prompt_tokens"] for own in records))}
    if "is_right" in records[0]:
        right = share(own["is_right"] for own in records)
        return {**right, "questions": len(records), **prompt}
    return {**loss_entries(records, "loss_truncated"), **prompt}


EXPERIMENT = Experiment(
    settings=BenefitSettings, records=records, row=row, cells=cells, needs_memory=False
)
