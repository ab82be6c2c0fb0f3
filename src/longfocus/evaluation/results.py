"""The folder of one run: what was asked, every answer, and the rows. Enough to repeat the run, and to go on with it.

    config.json     command, experiment, settings, memory, model, versions, hardware
    records.jsonl   a line for each example, with its cell
    metrics.json    a row for each finished cell

A cell is finished when its row is in metrics.json, which is replaced as a whole after its records were written:
whatever kills the process, what is lost is the cell in work. Records of an unfinished cell are removed by the next run.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longfocus.atomic import told_with, whole_file, write_all, write_text
from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Cell, Record, Row

CONFIG, RECORDS, METRICS = "config.json", "records.jsonl", "metrics.json"
LOCK = ".lock"
MAY_DIFFER = ("command",)
"""Entries of the configuration in which a run that goes on with another may differ."""


class Results:
    """The rows of a run; with `folder` kept there, with `json` written there too, both at the end of every cell."""

    def __init__(self, folder: Path | None = None, json: Path | None = None) -> None:
        self.folder, self.json = folder, json
        self.config: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.unsaved: list[Row] = []
        """What was measured and could not be written."""
        if folder is not None:
            _make(folder)
            self._lock = _locked(folder)

    def open(self, config: dict[str, Any], cells: Iterable[Cell]) -> None:
        """Begin, or go on with what is in the folder. Raises LongFocusError for the folder of another run."""
        # as it will be read
        self.config = json.loads(json.dumps(config, default=str))
        if self.folder is None:
            return
        if not (self.folder / CONFIG).exists():
            self._write(self.folder / CONFIG, self.config)
            return
        _check_same(self.folder, _read(self.folder / CONFIG), self.config)
        if (self.folder / METRICS).exists():
            self.rows = _rows(self.folder / METRICS)
        self._drop_records([cell for cell in cells if not self.has(cell)])

    def has(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return any(is_of(cell, row) for row in self.rows)

    def add(self, cell: Cell, row: Row, records: Sequence[Record]) -> None:
        """Keep what was measured of a cell."""
        self.unsaved = [row]
        if self.folder is not None:
            path = self.folder / RECORDS
            lines = "".join(json.dumps({**cell, **record}) + "\n" for record in records)
            with told_with(path), path.open("a") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)
        self.unsaved = []
        self.write()

    def write(self) -> None:
        """Write the rows."""
        if self.folder is not None:
            about = {"experiment": self.config["experiment"], "rows": self.rows}
            self._write(self.folder / METRICS, about)
        if self.json is not None:
            self._write(self.json, {**self.config, "rows": self.rows})

    def _drop_records(self, unfinished: Sequence[Cell]) -> None:
        """Remove the records of cells that have no row."""
        assert self.folder is not None
        path = self.folder / RECORDS
        if not path.exists():
            return
        with path.open("rb") as file:
            lines = list(file)
        # the last line may have been cut; every whole one ends
        whole = [line for line in lines if line.endswith(b"\n")]
        records = [_record(path, number, line) for number, line in enumerate(whole, start=1)]
        kept = [
            line
            for line, record in zip(whole, records, strict=True)
            if not any(is_of(cell, record) for cell in unfinished)
        ]
        if kept != lines:
            with whole_file(path) as descriptor:
                write_all(descriptor, b"".join(kept))

    @staticmethod
    def _write(path: Path, content: Any) -> None:
        write_text(path, json.dumps(content, indent=1) + "\n")


def is_of(cell: Cell, entries: Record) -> bool:
    """Whether a row or a record belongs to a cell."""
    return all(name in entries and entries[name] == value for name, value in cell.items())


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise LongFocusError(
            f"Line {number} of {path} is damaged: every line should be a record in JSON. Put back a whole copy of the "
            "file, or choose another folder for --output."
        )
    return record


def _make(folder: Path) -> None:
    """Refuse a folder that cannot be used, before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LongFocusError(
            f"--output {folder} cannot be made ({error.strerror}). Choose a folder that may be written to."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LongFocusError(f"--output {folder} cannot be written to. Choose another folder.")
    # what a killed run left half-written has a hidden name
    is_used = any(not entry.name.startswith(".") for entry in folder.iterdir())
    if is_used and not (folder / CONFIG).exists():
        raise LongFocusError(
            f"--output {folder} is not empty and holds no {CONFIG} of a run to go on with. Choose a new folder."
        )


def _locked(folder: Path) -> FileLock:
    """Held until the process ends or the results are forgotten. Raises LongFocusError if another one holds it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LongFocusError(
            f"--output {folder} is being written by another process. Wait for it, or choose another folder."
        ) from None
    return lock


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _no_file_of_ours(path)
    return found


def _rows(path: Path) -> list[Row]:
    rows = _read(path).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _no_file_of_ours(path)
    return rows


def _no_file_of_ours(path: Path) -> LongFocusError:
    return LongFocusError(
        f"{path} is no file that `longfocus evaluate` wrote, or is damaged. Choose another folder for --output."
    )


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [
        f"{name}: there {there}, here {here}"
        for name in sorted((found.keys() | wanted.keys()) - set(MAY_DIFFER))
        for there, here in _differences(found.get(name), wanted.get(name))
    ]
    if differing:
        raise LongFocusError(
            f"--output {folder} holds a run that differs from this one ({'; '.join(differing)}). Give the same options "
            "to go on with it, or another folder."
        )


def _differences(there: Any, here: Any) -> list[tuple[str, str]]:
    """What is told of two entries that differ: of tables, what differs in them."""
    if there == here:
        return []
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [(repr(there), repr(here))]
    names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    return [(f"{name} = {there.get(name)!r}", f"{name} = {here.get(name)!r}") for name in names]
