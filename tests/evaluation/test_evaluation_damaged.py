"""Damaged files of runs and beside models are named, never a traceback."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examining import COUNT, CountSettings, Knowing
from reporting import made

from longfocus.cli import main as cli
from longfocus.errors import LongFocusError
from longfocus.evaluation.contexts import previous_window
from longfocus.evaluation.report.runs import find
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.source_lines import WORDS_FILE, words_of_names

SETTINGS = CountSettings(tokens=("1K", "2K"), seeds=(1, 2))
CONFIG = {"experiment": "count", "settings": SETTINGS.to_dict()}
RECORD = json.dumps({"tokens": 1024, "seed": 1, "is_right": True}) + "\n"
BROKEN = ['{"tokens": 1024, "se\n', "[1]\n", '{"seed": 1}\n', "\n"]


def go_on(folder: Path) -> Results:
    results = Results(folder)
    results.open(CONFIG, list(COUNT.cells(SETTINGS)))
    return results


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run(COUNT, SETTINGS, Knowing(), go_on(tmp_path / "run"))
    return tmp_path / "run"


def broken_at(path: Path, number: int) -> str:
    """The text before a line of a file was cut in the middle."""
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:9] + "\n"
    path.write_text("".join(lines))
    return before


@pytest.mark.parametrize("number", [1, 5, 12])
def test_a_broken_line_is_named_when_a_run_is_to_go_on(finished: Path, number: int) -> None:
    path = finished / "records.jsonl"
    before = broken_at(path, number)
    damaged = path.read_text()
    with pytest.raises(LongFocusError, match=rf"Line {number} of .*records\.jsonl is damaged"):
        go_on(finished)
    assert path.read_text() == damaged
    path.write_text(before)
    assert len(go_on(finished).rows) == 4


def test_records_that_are_no_utf_8_are_named_when_a_run_is_to_go_on(finished: Path) -> None:
    path = finished / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"number", b"n\xffmber"))
    with pytest.raises(LongFocusError, match="Line 1 of"):
        go_on(finished)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '"a'),
        ("metrics.json", '{"a": 1}'),
        ("metrics.json", '{"rows": [1]}'),
        ("metrics.json", "[]"),
        ("metrics.json", ""),
    ],
)
def test_other_damaged_files_are_named_when_a_run_is_to_go_on(
    finished: Path, name: str, content: str
) -> None:
    (finished / name).write_text(content)
    with pytest.raises(LongFocusError, match=f"{name} is no file that .* or is damaged"):
        go_on(finished)


@pytest.mark.parametrize("line", BROKEN)
def test_a_report_names_a_run_with_a_broken_line_and_leaves_it_out(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"tokens": 1024, "seed": 1, "loss": 2.0, "perplexity": 7.4}
    made(tmp_path / "whole", "perplexity", [row], data=["x"])
    path = made(tmp_path / "broken", "perplexity", [row], data=["x"]) / "records.jsonl"
    path.write_text(RECORD + line + RECORD)
    assert cli.main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"{path.parent} is left out: line 2 of records.jsonl is damaged" in said.err
    assert "--output whole" in said.out
    assert "--output broken" not in said.out


def test_a_report_allows_a_last_line_that_was_cut(tmp_path: Path) -> None:
    path = made(tmp_path / "run", "passkey", [{"tokens": 1024, "seed": 1}]) / "records.jsonl"
    path.write_text(RECORD + RECORD[:12])
    (found,) = find([tmp_path]).runs
    assert list(found.records()) == [json.loads(RECORD)]


WHOLE = {
    "tokens": 64,
    "seed": 1,
    "others": 3,
    "positive_mass": 0.5,
    "model_layers": 4,
    "layers": [{"layer": 1, "others": 3, "positive_mass": 0.5}],
    "heads": [{"layer": 1, "head": 0, "others": 3, "positive_mass": 0.5}],
}


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": 3},
        {"heads": [3]},
        {"layers": [{"layer": "1", "others": 3, "positive_mass": 0.5}]},
        {"layers": [{"layer": 1, "others": 3}]},
        {"layers": [{"layer": 1, "others": 3, "positive_mass": "half"}]},
        {"layers": [*WHOLE["layers"], {"layer": 2, "positive_mass": 0.5}]},
        {"heads": [{"layer": 1, "others": 3, "positive_mass": 0.5}]},
        {"heads": [{"layer": 1, "head": 0, "positive_mass": 0.5}], "others": None},
        {"model_layers": None},
    ],
    ids=str,
)
def test_a_report_names_damaged_tables_of_layers(damage: dict[str, Any], tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", "layers", [WHOLE])
    made(tmp_path / "damaged", "layers", [WHOLE | damage])
    found = find([tmp_path])
    assert [run.folder for run in found.runs] == [whole]
    assert "metrics.json" in found.damaged[0].why
    # the others are reported all the same
    page = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path), "-o", str(page)]) == 2
    assert "layer 1, proposed" in page.read_text()


@pytest.mark.parametrize(("name", "content"), [("metrics.json", '{"a": 1}'), ("config.json", "[]")])
def test_a_report_names_other_damaged_files(tmp_path: Path, name: str, content: str) -> None:
    (made(tmp_path / "run", "passkey", [{"tokens": 1024, "seed": 1}]) / name).write_text(content)
    (damaged,) = find([tmp_path]).damaged
    assert name in damaged.why


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"test": 3}', '{"test": ["a", 3]}', '{"test": "word"}', "\xff"],
)
def test_damaged_words_beside_a_model_are_named_in_evaluation(tmp_path: Path, content: str) -> None:
    path = tmp_path / WORDS_FILE
    path.write_text(content, encoding="latin-1")
    with pytest.raises(LongFocusError, match=rf"{WORDS_FILE} is damaged: .* Put the file"):
        words_of_names(tmp_path)
    path.write_text('{"test": ["one", "two"]}')
    assert words_of_names(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"transformer_xl"',
        '{"method": "transformer_xl"}',
        '{"method": "transformer_xl", "window": "256"}',
        '{"method": "transformer_xl", "window": 0}',
    ],
)
def test_a_damaged_recipe_beside_a_model_is_named_in_evaluation(
    tmp_path: Path, content: str
) -> None:
    subject: Any = SimpleNamespace(folder=tmp_path)
    assert previous_window(subject) is None
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(LongFocusError, match=r"recipe\.json is damaged: .* Put the file"):
        previous_window(subject)
    (tmp_path / "recipe.json").write_text('{"method": "transformer_xl", "window": 256}')
    assert previous_window(subject) == 256
    (tmp_path / "recipe.json").write_text('{"method": "fot"}')
    assert previous_window(subject) is None
