"""The demo does the main job on real text, with the shipped models, through the public API."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus.cli import main as cli
from longfocus.cli import train
from longfocus.cli.tables import parse_lengths
from longfocus.errors import LongFocusError
from longfocus.hf.pretrained import resolve

WORDS = [f"{a}{b}{c}e" for a in "bcdfg" for b in "aeiou" for c in "lmn"][:60]


def demo(folder: Path, *options: str) -> dict:
    code = cli.main(
        ["demo", "--json", str(folder / "out.json"), "--plot", str(folder / "out.png"), *options]
    )
    assert code == 0
    return json.loads((folder / "out.json").read_text())


@pytest.mark.long
def test_the_demo_finds_what_it_hid_and_the_plain_model_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = demo(tmp_path, "--tokens", "4K")
    assert [row["tokens"] for row in found["text"]] == [0, 512, 2048]
    losses = [row["loss"] for row in found["text"]]
    assert losses[2] < losses[1] < losses[0] - 0.2
    for kind in ("passkey", "passkey_hard", "dictionary"):
        (row,) = found[kind]
        assert row["tokens"] >= 4096
        assert row["accuracy"] > 0.9
        assert row["accuracy_without_memory"] < 0.1
        assert row["memory_bytes"] > 0
    assert found["passkey"][0]["accuracy_one_key"] == 1.0
    assert "accuracy_d1" in found["passkey_hard"][0]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "out.png" in printed
    assert "Where it looked" in printed
    # nothing but what was asked for
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


@pytest.mark.long
def test_the_demo_reads_a_file_of_the_users(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text(
        "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 400
    )
    (tmp_path / "out").mkdir()
    found = demo(tmp_path / "out", "--tokens", "4K", "--file", str(text))
    assert found["passkey"][0]["accuracy"] > 0.5
    assert [row["documents"] for row in found["text"]] == [1, 1, 1]


@pytest.mark.long
def test_a_file_that_is_too_short_is_said_and_its_pass_keys_are_hidden_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "note.txt"
    text.write_text("".join(f"{word} and so on, one line more of it\n" for word in WORDS))
    (tmp_path / "out").mkdir()
    found = demo(tmp_path / "out", "--tokens", "4K", "--file", str(text))
    assert found["text"] == []
    assert "note.txt is not measured" in capsys.readouterr().out
    assert found["passkey"][0]["tokens"] >= 4096


@pytest.mark.long
def test_the_numbers_of_the_readme_hold_at_64_thousand_tokens(tmp_path: Path) -> None:
    found = demo(tmp_path, "--tokens", "64K")
    plain, hard, dictionary = (
        found[kind][-1] for kind in ("passkey", "passkey_hard", "dictionary")
    )
    assert plain["accuracy"] == plain["accuracy_one_key"] == 1.0
    assert hard["accuracy"] >= 0.9
    assert hard["accuracy"] > hard["accuracy_d1"]
    assert dictionary["accuracy"] >= 0.98


def test_one_length_stands_for_all_up_to_it() -> None:
    assert parse_lengths(["64K"]) == [4096, 16_384, 65_536]
    assert parse_lengths(["16M"])[-2:] == [4 * 1024**2, 16 * 1024**2]
    assert parse_lengths(["16K", "1k"]) == [1024, 16_384]


@pytest.mark.parametrize("wrong", ["", "many", "0", "12", "-4K", "4G", "²"])
def test_a_length_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(LongFocusError, match="--tokens"):
        parse_lengths([wrong])


def test_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--json", str(tmp_path / "missing" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["demo", "--file", str(tmp_path / "missing.txt")]) == 2
    assert "is not a file" in capsys.readouterr().err
    (tmp_path / "binary.dat").write_bytes(b"\0\1")
    assert cli.main(["demo", "--file", str(tmp_path / "binary.dat")]) == 2
    assert "NUL bytes" in capsys.readouterr().err


def trained(arguments: Any) -> None:
    """What a training makes, in no time: a copy of the model that ships."""
    name = arguments.output.name
    shutil.copytree(resolve(name), arguments.output)
    if name == "code":
        shutil.copytree(resolve("code_control"), arguments.output / "control")


@pytest.mark.long
def test_models_that_it_trained_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run_dictionary", "run_code"):
        monkeypatch.setattr(train, name, trained)
    asked = longfocus.from_pretrained
    seen: list[str] = []

    def from_pretrained(path: Any, **options: Any) -> Any:
        seen.append(str(path))
        return asked(path, **options)

    monkeypatch.setattr(longfocus, "from_pretrained", from_pretrained)
    found = demo(tmp_path, "--tokens", "4K", "--train")
    folder = "longfocus-models"
    assert {f"{folder}/code", f"{folder}/code/control", f"{folder}/dictionary"} < set(seen)
    assert all(row["accuracy"] > 0.9 for row in found["passkey"] + found["dictionary"])


@pytest.mark.parametrize("stopped", ["run_dictionary", "run_code"])
def test_a_training_that_is_stopped_ends_the_demo(
    stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run_dictionary", "run_code"):
        monkeypatch.setattr(train, name, lambda _: None)
    monkeypatch.setattr(train, stopped, lambda _: train.INTERRUPTED)
    assert cli.main(["demo", "--train"]) == 130
    assert list(tmp_path.iterdir()) == []
