"""Distraction: which share of the attention on the memory falls on the own document, when others are there too.

That is the paper's positive mass r_d (section 3.2), by memory layer and head, with d = 1 + --others documents of
--tokens tokens each in memory. A model that does not tell documents apart has 1/d. Measured exactly, with dense search,
on windows that are evenly apart in documents of --data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import (
    Cell,
    Experiment,
    Record,
    Row,
    Settings,
    lengths_and_seeds,
)
from longfocus.evaluation.intervals import mean_over_groups

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DistractionSettings(Settings):
    """Which documents, and how many."""

    tokens: tuple[str, ...] = ("2K",)
    """Tokens of each document in memory, such as 512 2K."""
    others: tuple[int, ...] = (1, 3, 7, 15, 63)
    """Numbers of other documents in memory."""
    data: tuple[Path, ...] = ()
    """Text files and folders; each file is a document that the model has not learned from."""
    windows: int = 4
    """Measured in each document, evenly apart; fewer in one that is too short for that."""
    max_documents: int = 20
    """At most so many documents are measured."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LongFocusError("--data is missing. Give text files, or folders of them.")
        if min(self.windows, self.max_documents, *self.others) < 1 or not self.others:
            raise LongFocusError(
                f"--others, --windows and --max-documents must be at least 1. Got {self.others}, {self.windows} and "
                f"{self.max_documents}."
            )


def cells(settings: DistractionSettings) -> Iterator[Cell]:
    for cell in lengths_and_seeds(settings):
        for others in sorted(set(settings.others)):
            yield {**cell, "others": others}


def records(subject: "Subject", settings: DistractionSettings, cell: Cell) -> Iterator[Record]:
    """One for every measured window, memory layer and head."""
    from longfocus.evaluation.contexts import evaluated_tokens
    from longfocus.evaluation.held_out import evenly, held_out

    subject.refuse_one_stream()
    data, tokens = held_out(settings.data, subject.tokenizer), cell["tokens"]
    most = max(settings.others)
    size, chance = evaluated_tokens(subject, None), 1 / (1 + cell["others"])
    chosen = data.chosen(tokens + size, settings.max_documents, cell["seed"])
    subject.expected = tokens * len(chosen) * (cell["others"] + settings.windows)
    for document in chosen:
        # the most of all cells, so that too few are refused before anything is measured
        others = list(islice(data.others(document.name, tokens, cell["seed"]), most))
        if len(others) < most:
            raise LongFocusError(
                f"--data has no {most} pieces of {tokens:,} tokens of other documents. Give fewer --others, "
                "shorter --tokens or more documents."
            )
        with subject.session() as session:
            for piece in others[: cell["others"]]:
                subject.read(session, piece)
            for place in evenly(len(document.ids), tokens, size, settings.windows):
                subject.read(session, document.ids[place - tokens : place])
                window = document.ids[place : place + size]
                for own in _masses(subject, session, window):
                    yield {"document": document.name, "place": place, **own, "chance": chance}
                session.documents.pop()


def _masses(subject: "Subject", session: Any, window: Any) -> Iterator[Row]:
    """Of every memory layer and head, for the document that was read last."""
    from longfocus.evaluation.distraction import shares

    with subject.answering():
        found = shares(subject, session, window)
    for layer, own in found.items():
        for head, mass in enumerate(own[-1].mean(1).tolist()):
            yield {"layer": layer, "head": head, "positive_mass": mass}


def row(records: Sequence[Record]) -> Row:
    layers = sorted({own["layer"] for own in records})
    heads = sorted({(own["layer"], own["head"]) for own in records})
    return {
        **_mean(records),
        "chance": records[0]["chance"],
        "documents": len({own["document"] for own in records}),
        "windows": len({(own["document"], own["place"]) for own in records}),
        "layers": [
            {"layer": layer, **_mean([own for own in records if own["layer"] == layer])}
            for layer in layers
        ],
        "heads": [
            {
                "layer": layer,
                "head": head,
                **_mean([o for o in records if (o["layer"], o["head"]) == (layer, head)]),
            }
            for layer, head in heads
        ],
    }


def _mean(records: Sequence[Record]) -> Row:
    masses, documents = zip(
        *((own["positive_mass"], own["document"]) for own in records), strict=True
    )
    return mean_over_groups(masses, documents, "positive_mass")


EXPERIMENT = Experiment(settings=DistractionSettings, records=records, row=row, cells=cells)
