"""What the paper measured, by experiment: tables beside ours, and points in our plots (paper.json)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, or figures that its text gives."""

    what: str
    source: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class PaperPoints:
    """Figures that belong into a plot of ours, for runs with these settings."""

    label: str
    settings: Mapping[str, Any]
    points: Sequence[tuple[int, float]]
    """Tokens, and the share of right answers."""


@cache
def _all() -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


def title() -> str:
    """The paper itself."""
    return _all()["paper"]


def tables(experiment: str) -> list[PaperTable]:
    return [PaperTable(**own) for own in _all()["tables"].get(experiment, [])]


def points(experiment: str, settings: Mapping[str, Any]) -> list[PaperPoints]:
    """Those that were measured as a run with these settings is."""
    found = (PaperPoints(**own) for own in _all()["points"].get(experiment, []))
    return [own for own in found if own.settings.items() <= settings.items()]
