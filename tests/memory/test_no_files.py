"""What is no regular file is refused without being followed, waited for, or unpickled."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corruption import refusal
from small_documents import small_document

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory.tensor_file import TensorFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a document."""
    small_document().save(tmp_path / "owl.safetensors")
    return tmp_path / "owl.safetensors"


def link(path: Path, to: Path) -> None:
    path.symlink_to(to)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: link(path, path.parent / "owl.safetensors"), "symbolic link"),
        (lambda path: link(path, Path("/etc/passwd")), "symbolic link"),
        (lambda path: link(path, path.parent / "nothing"), "symbolic link"),
        (lambda path: link(path, path), "symbolic link"),
        (os.mkfifo, "is not a file"),
        (os.mkdir, "is not a file"),
        (lambda path: None, "No such file"),
    ],
    ids=["link", "link out", "dangling", "loop", "pipe", "folder", "nothing"],
)
def test_what_is_no_regular_file_is_refused(
    make: Callable[[Path], None], reason: str, path: Path
) -> None:
    odd = path.parent / "odd.safetensors"
    make(odd)
    assert reason in refusal(odd, reason).told


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_refused(device: str) -> None:
    with pytest.raises(LongFocusError, match=f"{device} is (not a file|a symbolic link)"):
        DocumentMemory.load(device)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 5000])
def test_what_can_be_no_path_is_refused(name: str) -> None:
    with pytest.raises(LongFocusError, match="cannot be"):
        small_document().save(name or "nowhere/x")
    with pytest.raises(LongFocusError, match=r"cannot be|is not a file"):
        DocumentMemory.load(name)


class Trap:
    """Unpickling it leaves a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(path: Path) -> None:
    trap = Trap(path.parent / "trapped")
    refusal(path, "pickle", pickle.dumps(trap))
    torch.save({"layers.1.key": trap}, path)
    refusal(path, "torch.save")
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()


def test_a_file_that_shrinks_while_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = TensorFile._parse

    def shrink(file: TensorFile, spelled: bytes) -> object:
        header = parse(file, spelled)
        os.truncate(path, len(spelled))
        return header

    monkeypatch.setattr(TensorFile, "_parse", shrink)
    assert "cut off while it was opened" in refusal(path, "shrinking").told
