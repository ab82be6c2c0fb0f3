"""The runs of a report, read from the folders of `longfocus evaluate --output`. Imports no torch.

A folder that holds no run stands for all runs below it. What cannot be read is named, and left out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Settings, lengths_and_seeds
from longfocus.evaluation.experiments import EXPERIMENTS, experiment
from longfocus.evaluation.results import CONFIG, METRICS, RECORDS, is_of
from longfocus.evaluation.shown import INTERVAL

PLOTTED = (
    "accuracy",
    "accuracy_without_memory",
    "perplexity",
    "positive_mass",
    "knn_score",
    "focus_score",
    "same_token",
    "same_token_by_chance",
    "depth",
    "others",
)
"""Entries of rows that are numbers in a plot."""

TABLES = {"layers": ("layer",), "heads": ("layer", "head")}
"""Tables within a row, and what tells their entries apart."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    waiting: int
    """Cells that have no row yet."""

    @property
    def experiment(self) -> str:
        return self.config["experiment"]

    @property
    def command(self) -> str:
        return str(self.config.get("command", "unknown"))

    @property
    def status(self) -> str:
        """Empty for a run that is finished."""
        done = len(self.rows)
        return f"unfinished: {done} of {done + self.waiting} cells" if self.waiting else ""

    def records(self) -> Iterator[Row]:
        """The records, as far as they can be read."""
        path = self.folder / RECORDS
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                # the last line of a run that was killed may be cut
                if line.endswith("\n"):
                    yield json.loads(line)


@dataclass(frozen=True)
class Damaged:
    """A folder that was left out, and why."""

    folder: Path
    why: str


@dataclass
class Found:
    """What was found in some folders."""

    runs: list[Run] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)


def find(folders: Iterable[Path]) -> Found:
    """All runs in folders or below them, each once. Raises LongFocusError if there is none, damaged ones apart."""
    found, given = Found(), list(folders)
    seen: set[Path] = set()
    for folder in given:
        for path in _run_folders(folder):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _read_into(found, path)
    if not found.runs and not found.damaged:
        raise LongFocusError(
            f"There is no run in {', '.join(map(str, given)) or 'no folder'}. Give folders that `longfocus evaluate "
            "NAME --output FOLDER` has written, or a folder that holds such folders."
        )
    return found


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise LongFocusError(f"{folder} is not a folder. Give folders of `longfocus evaluate`.")
    if _is_run(folder):
        return [folder]
    below = {path.parent for path in folder.rglob(CONFIG)}
    below |= {path.parent for path in folder.rglob(METRICS)}
    return sorted(path for path in below if _is_run(path))


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, damaged or not; models have a config.json, too, and other files beside it."""
    if (folder / METRICS).is_file() or (folder / RECORDS).is_file():
        return True
    try:
        config = _json(folder / CONFIG)
    except LongFocusError:
        return False
    return isinstance(config, dict) and "experiment" in config


def _read_into(found: Found, folder: Path) -> None:
    try:
        found.runs.append(_read(folder))
    except LongFocusError as error:
        found.damaged.append(Damaged(folder, str(error)))


def _read(folder: Path) -> Run:
    config = _json(folder / CONFIG)
    if not isinstance(config, dict) or not _is_config(config):
        raise LongFocusError(f"{CONFIG} is not that of a run")
    rows: Any = []
    if (folder / METRICS).exists():
        metrics = _json(folder / METRICS)
        rows = metrics.get("rows") if isinstance(metrics, dict) else None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise LongFocusError(f"{METRICS} holds no rows that `longfocus evaluate` wrote")
    try:
        cells = list(_cells(config["experiment"], config["settings"]))
    except (LongFocusError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise LongFocusError(f"{CONFIG} has settings that make no sense ({error})") from None
    _check_records(folder / RECORDS)
    waiting = [cell for cell in cells if not any(is_of(cell, row) for row in rows)]
    return Run(folder, config, rows, len(waiting))


def _check_records(path: Path) -> None:
    """Whatever follows reads them without a look; the last line of a run that was killed may be cut."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not _is_record(line):
                raise LongFocusError(
                    f"line {number} of {RECORDS} is damaged: it is no record of a cell"
                )


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and _is_cell(record)


def _is_config(config: Mapping[str, Any]) -> bool:
    tables = [config.get(name) or {} for name in ("memory", "focus", "hardware")]
    return (
        isinstance(config.get("experiment"), str)
        and isinstance(config.get("settings"), dict)
        and all(isinstance(own, dict) for own in tables)
    )


def _is_row(row: Any) -> bool:
    """Whether a row has what every row has, and numbers where they are plotted."""
    if not isinstance(row, dict):
        return False
    numbers = [row.get(name) for name in PLOTTED]
    for ends in (row.get(f"{name}{INTERVAL}") for name in PLOTTED):
        # anything but two ends is no number
        numbers += ends if isinstance(ends, list) and len(ends) == 2 else [ends and str(ends)]
    is_plotted = all(own is None or isinstance(own, (int, float)) for own in numbers)
    return _is_cell(row) and is_plotted and all(_is_table(row, *table) for table in TABLES.items())


def _is_table(row: Row, name: str, places: Sequence[str]) -> bool:
    """Whether a table of shares r_d is whole: of one number of other documents, which the row tells, or of several."""
    entries = row.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(own, dict) for own in entries):
        return False
    if any("others" in own for own in entries):
        places = (*places, "others")
        if not isinstance(row.get("model_layers"), int):
            return False
    elif entries and not isinstance(row.get("others"), int):
        return False
    return all(
        isinstance(own.get("positive_mass"), (int, float))
        and all(isinstance(own.get(place), int) for place in places)
        for own in entries
    )


def _is_cell(entries: Row) -> bool:
    return all(isinstance(entries.get(name), int) for name in ("tokens", "seed"))


def _cells(name: str, settings: Mapping[str, Any]) -> Iterable[Row]:
    """All cells of a run."""
    chosen = experiment(name) if name in EXPERIMENTS else None
    kind = chosen.settings if chosen is not None else Settings
    # not made in the ordinary way, which looks for files that may have gone
    made = object.__new__(kind)
    made.__dict__.update(settings, tokens=tuple(map(str, settings["tokens"])))
    return (chosen.cells if chosen is not None else lengths_and_seeds)(made)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LongFocusError(f"{path.name} cannot be read ({error.strerror})") from None
    except ValueError:
        raise LongFocusError(f"{path.name} is damaged: it is not JSON") from None
