"""What the command of an evaluation shows of what it measured, also when that cannot be written."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examining import COUNT, CountSettings, Knowing, count_records

from longfocus.cli.evaluate import _measure
from longfocus.errors import LongFocusError
from longfocus.evaluation.results import Results

SETTINGS = CountSettings(tokens=("1K",), seeds=(11, 22, 33))


def measure(folder: Path, chosen: Any = COUNT) -> int | None:
    results = Results(folder)
    results.open({"experiment": "count"}, list(COUNT.cells(SETTINGS)))
    return _measure("count", chosen, SETTINGS, Knowing(), results, None)


def seeds_shown(said: str) -> list[int]:
    return [int(line.split("│")[2]) for line in said.splitlines() if "1K │" in line]


@pytest.mark.parametrize("fails", ["records", "rows"])
def test_what_was_measured_is_shown_when_it_cannot_be_written(
    fails: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsync, of_records = os.fsync, []

    def full(descriptor: int) -> None:
        is_records = os.readlink(f"/proc/self/fd/{descriptor}").endswith("records.jsonl")
        of_records.append(is_records)
        # the configuration and the first cell find room
        if of_records.count(True) >= 2 and is_records == (fails == "records"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LongFocusError, match="cannot be written: the disk is full"):
            measure(tmp_path)
    assert seeds_shown(capsys.readouterr().out) == [11, 22]
    assert measure(tmp_path) is None
    assert seeds_shown(capsys.readouterr().out) == [11, 22, 33]
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [11, 22, 33]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(("refused", "shown"), [(11, []), (22, [11]), (33, [11, 22])])
def test_what_was_measured_is_shown_when_a_cell_of_an_evaluation_is_refused(
    refused: int, shown: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(subject: Any, settings: Any, cell: Any) -> Any:
        if cell["seed"] == refused:
            raise LongFocusError("too short")
        return count_records(subject, settings, cell)

    with pytest.raises(LongFocusError, match="too short"):
        measure(tmp_path, replace(COUNT, records=refusing))
    said = capsys.readouterr().out
    assert seeds_shown(said) == shown
    assert shown or not said


def test_a_text_that_is_too_short_is_warned_of_once_in_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def repeating(subject: Any, settings: Any, cell: Any) -> Any:
        subject.costs.text_repeated = 3 * (cell["seed"] > 11)
        return count_records(subject, settings, cell)

    measure(tmp_path / "whole")
    assert "warning" not in capsys.readouterr().err
    measure(tmp_path / "short", replace(COUNT, records=repeating))
    said = capsys.readouterr()
    assert said.err.count("warning: a text was shorter than --tokens") == 1
    assert "text repeated" in " ".join(said.out.split())
    rows = json.loads((tmp_path / "short" / "metrics.json").read_text())["rows"]
    assert [row.get("text_repeated") for row in rows] == [None, 3, 3]
