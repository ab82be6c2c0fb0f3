"""`longfocus bench` and `longfocus estimate`: what they print, their exit codes, what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from benching import TINY

from longfocus.cli import main as cli
from longfocus.evaluation.speed import reading, settings
from longfocus.evaluation.speed.peers.full import Full


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command on tiny models."""
    monkeypatch.setattr(settings, "Settings", lambda **given: settings.replace(TINY, **given))


def test_one_pair_is_measured_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    assert cli.main(["bench", "--only", "reading_64", *options]) == 0
    shown = capsys.readouterr().out
    assert "reading: tokens/s" in shown
    assert "reading_64_vs_published_sdpa" in shown
    assert "at most about" in shown
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["finished"] == ["reading_64"]
    assert list(found["ratios"]) == [
        "reading_64_vs_published_sdpa",
        "reading_64_vs_published_eager",
        "reading_64_vs_full_attention",
    ]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_no_ratio_is_shown_when_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Full, "logits", lambda self, ids, cache: torch.zeros(1, ids.shape[1], 50))
    path = tmp_path / "b.json"
    assert cli.main(["bench", "--only", "bytes", "reading_64", "--json", str(path)]) == 1
    shown = capsys.readouterr()
    assert "do not compute the same thing" in shown.err
    assert "ratio" not in shown.out
    found = json.loads(path.read_text())
    assert found["refused"]
    assert not found["ratios"]
    assert not found["rows"]


def test_ctrl_c_shows_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "_pairs", interrupt)
    path = tmp_path / "b.json"
    words = ["bench", "--only", "reading_one_layer", "reading_64", "--json", str(path)]
    assert cli.main(words) == 130
    shown = capsys.readouterr().out
    assert "reading_exponent_one_layer" in shown
    assert "Interrupted" in shown
    monkeypatch.undo()
    monkeypatch.setattr(settings, "Settings", lambda **given: settings.replace(TINY, **given))
    assert cli.main([*words, "--resume"]) == 0
    assert json.loads(path.read_text())["finished"] == ["reading_one_layer", "reading_64"]


def test_a_cell_that_was_not_measured_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--only", "reading_64", "--limit-seconds", "0.000001"]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert "one repetition takes more than 1e-06 s" in shown
    assert "ratios by name" not in shown


def test_the_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "kernel_5k" in shown
    assert "tokens/s" not in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "reading_5k"], "there is no such measurement"),
        (["--threads", "0"], "--threads"),
        (["--limit-seconds", "0"], "--limit-seconds"),
        (["--resume"], "--json"),
        (["--json", "/nowhere/b.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *options]) == 2
    assert told in capsys.readouterr().err


def test_an_estimate_of_a_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "dictionary", "--tokens", "4K", "--memory-dtype", "int8"]) == 0
    shown = capsys.readouterr().out
    assert "4,096 tokens of memory" in shown
    assert "bytes per token, int8" in shown
    # two vectors of 128 bytes, and a scale for each
    assert "264" in shown
    assert "1.0 MiB" in shown


@pytest.mark.parametrize("tokens", ["0", "many", "-1", "K"])
def test_an_estimate_needs_a_number_of_tokens(
    tokens: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", "dictionary", f"--tokens={tokens}"]) == 2
    assert "is not a number of tokens" in capsys.readouterr().err
