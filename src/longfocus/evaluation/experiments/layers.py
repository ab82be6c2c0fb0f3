"""Which layers should become memory layers: r_d of every layer of a model, before any training.

For windows that are evenly apart in documents of --data: the share of each layer's and head's attention on a memory
that would fall on the --tokens directly before, when --others documents of equal length lie beside them (the paper's
positive mass r_d, with d = 1 + --others). No layer has found anything in a memory: hidden states are those of the
model as it is, so all layers are measured in one pass. Below the table stands a proposal: memory layers and d.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from longfocus.config import Positions
from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Cell, Experiment, Record, Row, Settings
from longfocus.evaluation.intervals import mean_over_groups
from longfocus.evaluation.layers_choice import CLEARLY, preference

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class LayersSettings(Settings):
    """Which documents, how many, and which layers."""

    tokens: tuple[str, ...] = ("2K",)
    """Tokens of each document that would be in memory, such as 512 2K."""
    others: tuple[int, ...] = (1, 3, 7, 15, 31)
    """Numbers of other documents in memory; all of them are measured at once."""
    data: tuple[Path, ...] = ()
    """Text files and folders; each file is a document."""
    window: int | None = None
    """Tokens of a window; the default is the memory's, or the model's positions, at most 2048."""
    positions: Positions = "window_start"
    """Rotary encoding in memory layers, none or window_start; a model with a memory has its own."""
    layers: tuple[int, ...] = ()
    """Candidates; the default is every layer with attention."""
    choose: int | None = None
    """Memory layers to propose; the default is 1 for a model of up to 12 layers, else 3."""
    queries: int = 64
    """Tokens of each window that look, evenly apart."""
    windows: int = 2
    """Evaluated in each document, evenly apart; fewer in one that is too short for that."""
    max_documents: int = 20
    """At most so many documents are evaluated."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LongFocusError("--data is missing. Give text files, or folders of them.")
        for path in self.data:
            if not path.exists():
                raise LongFocusError(f"--data {path} is not there. Give files and folders of text.")
        self._check_numbers()
        if self.positions == "true":
            raise LongFocusError(
                "--positions true has no place for several documents. Give window_start or none."
            )

    def _check_numbers(self) -> None:
        if not self.others:
            raise LongFocusError("--others is empty. Give numbers of other documents, such as 1 7.")
        least = {
            "others": min(self.others),
            "queries": self.queries,
            "windows": self.windows,
            "max_documents": self.max_documents,
            "choose": 1 if self.choose is None else self.choose,
            "window": 1 if self.window is None else self.window,
        }
        if wrong := [name for name, value in least.items() if value < 1]:
            told = ", ".join(f"--{name.replace('_', '-')} {least[name]}" for name in wrong)
            raise LongFocusError(f"{told}: must be at least 1. Give more.")


def records(subject: "Subject", settings: LayersSettings, cell: Cell) -> Iterator[Record]:
    """One for every evaluated window, layer and number of others, with lists by head."""
    from longfocus.evaluation.layers import measured

    yield from measured(subject, settings, cell["tokens"], cell["seed"])


def row(records: Sequence[Record]) -> Row:
    places = sorted({(own["layer"], own["others"]) for own in records})
    by_place = {
        place: [o for o in records if (o["layer"], o["others"]) == place] for place in places
    }
    largest = max(others for _, others in places)
    at_largest = [own for own in records if own["others"] == largest]
    return {
        "others": largest,
        **_mean([fmean(own["positive_mass"]) for own in at_largest], at_largest),
        "chance": 1 / (1 + largest),
        "documents": len({own["document"] for own in records}),
        "windows": len({(own["document"], own["place"]) for own in records}),
        "window_tokens": records[0]["window_tokens"],
        "model_layers": records[0]["model_layers"],
        "layers": [_layer(*place, own) for place, own in by_place.items()],
        "heads": [head for place, own in by_place.items() for head in _heads(*place, own)],
    }


def _layer(layer: int, others: int, records: Sequence[Record]) -> Row:
    """Of one layer and number of others: the mean over heads, and how many of them prefer their own document."""
    by_head = [fmean(own) for own in zip(*(own["positive_mass"] for own in records), strict=True)]
    measured = _mean([fmean(own["positive_mass"]) for own in records], records)
    return {
        "layer": layer,
        "others": others,
        **measured,
        "chance": 1 / (1 + others),
        "preference": preference(measured["positive_mass"], others),
        "clear_heads": fmean(preference(mass, others) > CLEARLY for mass in by_head),
        "memory_share": fmean(fmean(own["memory_share"]) for own in records),
    }


def _heads(layer: int, others: int, records: Sequence[Record]) -> Iterator[Row]:
    by_head = zip(*(own["positive_mass"] for own in records), strict=True)
    for head, masses in enumerate(by_head):
        yield {"layer": layer, "head": head, "others": others, **_mean(masses, records)}


def _mean(masses: Sequence[float], records: Sequence[Record]) -> Row:
    return mean_over_groups(masses, [own["document"] for own in records], "positive_mass")


EXPERIMENT = Experiment(
    settings=LayersSettings, records=records, row=row, needs_memory=False, attaches=True
)
