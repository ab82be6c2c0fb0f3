"""A run of an experiment: what its folder holds, that it goes on after any end, and that rows are what they say."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examining import COUNT, CountSettings, Knowing, count_records

from longfocus.errors import LongFocusError
from longfocus.evaluation import intervals
from longfocus.evaluation.given_files import hashes
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run

SETTINGS = CountSettings(tokens=("1K", "2K"), seeds=(1, 2))
CONFIG = {"experiment": "count", "settings": SETTINGS.to_dict(), "model": {"name": "tiny"}}
TIMES = ("reading_seconds", "answering_seconds", "peak_anonymous_bytes")


def opened(folder: Path | None, **changes: Any) -> Results:
    results = Results(folder)
    results.open({**CONFIG, **changes}, list(COUNT.cells(SETTINGS)))
    return results


def written(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows without what differs from run to run, and records."""
    rows = json.loads((folder / "metrics.json").read_text())["rows"]
    kept = [{name: row[name] for name in row if name not in TIMES} for row in rows]
    return kept, (folder / "records.jsonl").read_text().splitlines()


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    folder = tmp_path / "undisturbed"
    run(COUNT, SETTINGS, Knowing(), opened(folder))
    return folder


def test_the_folder_holds_configuration_records_and_rows(undisturbed: Path) -> None:
    shown = sorted(name for name in os.listdir(undisturbed) if not name.startswith("."))
    assert shown == ["config.json", "metrics.json", "records.jsonl"]
    assert json.loads((undisturbed / "config.json").read_text())["settings"]["tokens"] == [
        1024,
        2048,
    ]
    rows, records = written(undisturbed)
    assert [(row["tokens"], row["seed"]) for row in rows] == [
        (1024, 1),
        (1024, 2),
        (2048, 1),
        (2048, 2),
    ]
    assert [round(row["accuracy"], 2) for row in rows] == [0.33, 0.67, 0.33, 0.67]
    assert len(records) == 12
    assert json.loads(records[0]) == {"tokens": 1024, "seed": 1, "number": 0, "is_right": False}


class Killed(BaseException):
    """The end of a process, as far as a test can end one."""


@pytest.mark.parametrize("examples", [1, 3, 4, 8, 11])
def test_a_run_that_was_killed_goes_on_as_if_it_was_not(
    undisturbed: Path, tmp_path: Path, examples: int
) -> None:
    folder, made = tmp_path / "killed", []

    def dying(subject: Any, settings: Any, cell: Any) -> Any:
        for record in count_records(subject, settings, cell):
            if len(made) == examples:
                raise Killed
            made.append(record)
            yield record

    with pytest.raises(Killed):
        run(replace(COUNT, records=dying), SETTINGS, Knowing(), opened(folder))
    results = opened(folder)
    assert len(results.rows) == examples // 3
    run(COUNT, SETTINGS, Knowing(), results)
    assert written(folder) == written(undisturbed)


def test_records_without_a_row_and_cut_lines_are_removed(undisturbed: Path, tmp_path: Path) -> None:
    metrics = undisturbed / "metrics.json"
    expected, found = written(undisturbed), json.loads(metrics.read_text())
    # killed after the records of the last cell, before its row
    metrics.write_text(json.dumps({**found, "rows": found["rows"][:-1]}))
    assert len(opened(undisturbed).rows) == 3
    assert len(written(undisturbed)[1]) == 9
    # killed within a line
    with (undisturbed / "records.jsonl").open("a") as file:
        file.write('{"tokens": 2048, "se')
    run(COUNT, SETTINGS, Knowing(), opened(undisturbed))
    assert written(undisturbed) == expected


def test_finished_cells_are_not_run_again(undisturbed: Path) -> None:
    def never(subject: Any, settings: Any, cell: Any) -> Any:
        raise AssertionError(cell)

    run(replace(COUNT, records=never), SETTINGS, Knowing(), opened(undisturbed))


def test_the_folder_of_another_run_is_refused(undisturbed: Path) -> None:
    opened(undisturbed, command="longfocus evaluate count --output elsewhere")
    before = written(undisturbed)
    other = {**CONFIG["settings"], "questions": 4}
    with pytest.raises(LongFocusError, match="questions = 3, here questions = 4"):
        opened(undisturbed, settings=other)
    with pytest.raises(LongFocusError, match="name = 'tiny', here name = 'large'"):
        opened(undisturbed, model={"name": "large"})
    assert written(undisturbed) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LongFocusError, match=r"is not empty and holds no config\.json"):
        Results(tmp_path)
    with pytest.raises(LongFocusError, match="cannot be made"):
        Results(tmp_path / "notes.txt")
    (tmp_path / "notes.txt").rename(tmp_path / "config.json")
    with pytest.raises(LongFocusError, match="is no file that"):
        opened(tmp_path)


def test_progress_grows_to_the_end() -> None:
    told: list[float] = []
    run(COUNT, SETTINGS, Knowing(), opened(None), lambda share, text: told.append(share))
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] < 1


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(LongFocusError, match="nothing to measure"):
        list(COUNT.cells(CountSettings(seeds=())))


def test_intervals_hold_the_share_and_shrink_with_examples() -> None:
    for right, examples in ((0, 3), (1, 3), (3, 3), (150, 300), (300, 300)):
        low, high = intervals.wilson(right / examples, examples)
        assert 0 <= low <= right / examples <= high <= 1
        assert low < high
    # Wilson's for 8 of 10 is 0.490 to 0.943
    assert intervals.wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals.share([]) == {"accuracy": None, "accuracy_interval": None}


def test_a_folder_that_another_run_is_writing_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(LongFocusError, match="being written by another process"):
        Results(tmp_path)
    del first
    opened(tmp_path)


def test_texts_that_changed_are_another_run(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "one.py").write_text("one")
    (tmp_path / "texts" / "two.py").write_text("two")
    paths = (tmp_path / "one.py", tmp_path / "texts")
    before = hashes(SimpleNamespace(data=paths, file=None, seeds=(1, 2)))
    assert list(before) == [str(path) for path in paths]
    (tmp_path / "texts" / "two.py").write_text("three")
    after = hashes(SimpleNamespace(data=paths))
    assert after[str(paths[0])] == before[str(paths[0])]
    assert after[str(paths[1])] != before[str(paths[1])]
    opened(tmp_path / "run", files=before)
    with pytest.raises(LongFocusError, match="differs from this one"):
        opened(tmp_path / "run", files=after)
    # a text or a dataset's name, as fewshot has it
    assert hashes(SimpleNamespace(data=str(paths[0]))) == {str(paths[0]): before[str(paths[0])]}
    assert hashes(SimpleNamespace(data="a/dataset")) == {}
