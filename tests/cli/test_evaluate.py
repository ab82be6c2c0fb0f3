"""`longfocus evaluate`: what it prints and writes, its exit codes, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from longfocus.cli import main as cli
from longfocus.cli.evaluate_tables import over_seeds
from longfocus.evaluation.subject import Subject

PASSKEY = ("evaluate", "passkey", "--tokens", "512", "--questions", "2")


def test_evaluation_writes_rows_records_and_what_repeats_it(run: Any, tmp_path: Path) -> None:
    folder, file = tmp_path / "results", tmp_path / "rows.json"
    words = (*PASSKEY, "--seeds", "1", "2", "--output", folder, "--json", file)
    said = run(*words)
    assert said.code == 0, said.err
    assert "accuracy without memory" in " ".join(said.out.split())
    assert "512: accuracy 0.0% (mean of 2 seeds), least 0.0%, most 0.0%" in said.out
    assert "tokens 512, seed 1" in said.err
    found = json.loads(file.read_text())
    assert found["rows"] == json.loads((folder / "metrics.json").read_text())["rows"]
    assert [row["seed"] for row in found["rows"]] == [1, 2]
    assert {"tokens", "accuracy", "accuracy_interval", "memory_bytes"} <= found["rows"][0].keys()
    config = json.loads((folder / "config.json").read_text())
    assert {
        "command",
        "experiment",
        "fingerprint",
        "versions",
        "hardware",
        "threads",
    } <= config.keys()
    assert config["settings"]["text"] == "landmark"
    assert len((folder / "records.jsonl").read_text().splitlines()) == 4
    # the same command does nothing more, another is refused
    again = run(*words)
    assert json.loads(file.read_text())["rows"] == found["rows"]
    assert "read" not in again.err
    refused = run(*PASSKEY, "--search", "exact", "--output", folder)
    assert refused.code == 2
    assert "search = None, here search = 'exact'" in refused.err


def test_ctrl_c_shows_what_was_measured_and_the_same_command_goes_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = Subject.read, []

    def interrupted(*given: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return read(*given)

    monkeypatch.setattr(Subject, "read", interrupted)
    words = (*PASSKEY, "--seeds", "1", "2", "3", "--output", tmp_path / "results")
    stopped = run(*words, "--json", tmp_path / "rows.json")
    assert stopped.code == 130
    assert "Interrupted" in stopped.out
    assert "passkey" in stopped.out
    assert [row["seed"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == [1]
    assert run(*words).code == 0
    assert len(count) == 4 + 4
    rows = json.loads((tmp_path / "results" / "metrics.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--questions", "0"), "must be at least 1"),
        (("--file", "/nowhere.txt"), "is not a file"),
        (("--tokens", "many"), "is not a number of tokens"),
        (("--json", "/nowhere/rows.json"), "cannot be written"),
        (("--output", "/proc/nowhere"), "cannot be made"),
        (("--retain", "2"), "retain is a share"),
        (("--spill-folder", "/nowhere", "--memory-gib", "1"), "There is no folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run: Any, words: tuple[str, ...], told: str) -> None:
    said = run("evaluate", "passkey", *words)
    assert said.code == 2
    assert told in said.err


def test_texts_need_a_tokenizer(run: Any) -> None:
    assert "has no tokenizer" in run(*PASSKEY, "--model", "dictionary").err


def test_the_dictionary_needs_no_tokenizer_and_has_a_model_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--tokens", "1K", "--questions", "25", "--whole-answers", "2")
    assert cli.main(["evaluate", "dictionary", *words]) == 0
    assert "100.0%" in capsys.readouterr().out


def test_the_list_of_evaluations_loads_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "evaluate dictionary" in shown
    assert "evaluate passkey" in shown


def test_what_was_measured_with_one_seed_has_no_mean() -> None:
    assert over_seeds([{"tokens": 1024, "seed": 1, "accuracy": 0.5}]) == []
    depths = [{"tokens": 1024, "seed": 1, "depth": d, "accuracy": d} for d in (0.2, 0.4)]
    assert over_seeds(depths) == []
    other = [{**row, "seed": 2, "accuracy": 0.5} for row in depths]
    assert over_seeds(depths + other) == [
        "1K: accuracy 40.0% (mean of 2 seeds), least 30.0%, most 50.0%"
    ]
    rows = [{"tokens": 1024, "seed": seed, "perplexity": 3.0 + seed} for seed in (1, 2)]
    assert over_seeds(rows) == ["1K: perplexity 4.50 (mean of 2 seeds), least 4.00, most 5.00"]
