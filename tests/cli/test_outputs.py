"""Files that commands write: what is no file is refused, links are followed, and what fails loses nothing."""

import errno
import json
import os
from pathlib import Path

import pytest

from longfocus.atomic import whole_file, write_all, write_text
from longfocus.cli import main as cli
from longfocus.cli.outputs import refuse_unwritable
from longfocus.errors import LongFocusError
from longfocus.evaluation.results import Results

PASSKEY = ("evaluate", "passkey", "--tokens", "32", "--questions", "1")


def run_of(folder: Path) -> Path:
    """A finished run."""
    folder.mkdir()
    config = {"experiment": "passkey", "settings": {"tokens": [1024], "seeds": [1]}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"tokens": 1024, "seed": 1, "accuracy": 1.0}]
    (folder / "metrics.json").write_text(json.dumps({"rows": rows}))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        (*PASSKEY, "--model", "code", "--json"),
        ("report", "RUN", "-o"),
        ("report", "RUN", "--markdown"),
        ("demo", "--json"),
        ("demo", "--plot"),
        ("evaluate", "speed", "--json"),
    ],
)
def test_a_pipe_is_refused_before_the_work_and_stays_one(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    given = [str(run_of(tmp_path / "run")) if word == "RUN" else word for word in words]
    for path in (pipe, link):
        assert cli.main([*given, str(path)]) == 2
        assert f"{path} cannot be written" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert link.is_symlink()


@pytest.mark.parametrize("follows", [True, False])
def test_what_is_no_file_is_never_replaced(follows: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(LongFocusError, match="pipe is a pipe, a socket or a device"),
        whole_file(tmp_path / "pipe", follows_links=follows),
    ):
        pass
    assert os.listdir(tmp_path) == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("is_there", [True, False])
def test_the_file_that_a_link_leads_to_is_written(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link, target = tmp_path / "link", tmp_path / "deep" / "target"
    if is_there:
        target.write_text("old")
    (tmp_path / "deep" / "second").symlink_to("target")
    link.symlink_to(Path("deep") / "second")
    refuse_unwritable(link)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(os.listdir(target.parent)) == ["second", "target"]


def test_a_link_into_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing/file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LongFocusError, match="link cannot be written"):
        refuse_unwritable(tmp_path / "link")
    refuse_unwritable(tmp_path / "loop", None)
    write_text(tmp_path / "loop", "a file")
    assert (tmp_path / "loop").read_text() == "a file"


@pytest.mark.parametrize("fails", [KeyboardInterrupt, ValueError])
def test_what_was_there_stays_when_writing_fails(
    fails: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as descriptor:
            write_all(descriptor, b"ne")
            raise fails

    with pytest.raises(fails):
        write()
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "run")
    (tmp_path / "report.md").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ["report", str(tmp_path / "run"), "--markdown", str(tmp_path / "report.md")]
    assert cli.main(words) == 2
    assert "disk is full" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["report.md", "run"]


def test_rows_that_could_not_be_written_are_not_finished(tmp_path: Path) -> None:
    results = Results(tmp_path / "run")
    results.open({"experiment": "x"}, [])
    (tmp_path / "run" / "records.jsonl").mkdir()
    with pytest.raises(LongFocusError, match=r"records\.jsonl cannot be written"):
        results.add({"tokens": 1, "seed": 1}, {"tokens": 1, "seed": 1}, [])
    assert not results.has({"tokens": 1, "seed": 1})
    assert results.unsaved == [{"tokens": 1, "seed": 1}]
