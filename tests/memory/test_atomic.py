"""Whatever happens to a writer, a file is there as a whole or not at all, and the next writer cleans up."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_documents import small_document

from kills import ends_when_killed_at
from long import mostly_long
from longfocus import DocumentMemory, LongFocusError, atomic
from longfocus.atomic import move_new, whole_file, write_all
from longfocus.memory.library import Library

OLD, NEW = small_document("owl"), small_document("owl", seed=1)
Action = Callable[[Path], object]


def add_old(folder: Path) -> None:
    Library(folder).add(OLD)


ACTIONS: dict[str, tuple[Action, Action, set[tuple[tuple[str, str], ...]]]] = {
    # what was before, what is done, and how the library may look afterwards: first without, last with it
    "save a new file": (
        lambda folder: None,
        lambda folder: OLD.save(folder / "owl.safetensors"),
        {(), (("owl", OLD.hash),)},
    ),
    "save over a file": (
        add_old,
        lambda folder: NEW.save(folder / "owl.safetensors"),
        {(("owl", OLD.hash),), (("owl", NEW.hash),)},
    ),
    "make a library": (
        lambda folder: None,
        lambda folder: Library(folder / "inner" / "most"),
        {()},
    ),
    "add": (
        lambda folder: None,
        lambda folder: Library(folder).add(OLD),
        {(), (("owl", OLD.hash),)},
    ),
    "replace": (
        add_old,
        lambda folder: Library(folder).add(NEW, replaces=True),
        {(("owl", OLD.hash),), (("owl", NEW.hash),)},
    ),
    "rename": (
        add_old,
        lambda folder: Library(folder).rename("owl", "eagle"),
        {(("owl", OLD.hash),), (("eagle", OLD.hash),)},
    ),
    "remove": (add_old, lambda folder: Library(folder).remove("owl"), {(("owl", OLD.hash),), ()}),
}


def state(folder: Path) -> tuple[tuple[str, str], ...]:
    """Names and hashes of all documents, each of which is whole."""
    found = Library(folder).select()
    for document in found:
        document.verify()
    assert [document.name for document in found] == Library(folder).names()
    return tuple((document.name, document.hash) for document in found)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("what", mostly_long(ACTIONS, "replace", "save over a file"))
def test_a_writer_killed_at_any_call_leaves_the_old_or_the_new(what: str, tmp_path: Path) -> None:
    before, action, allowed = ACTIONS[what]
    seen, left, number, is_done = set(), 0, 0, False
    while not is_done:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        before(folder)
        is_done = ends_when_killed_at(number, lambda folder=folder: action(folder))
        seen.add(state(folder))
        left += len(leftovers(folder))
        # the next writer cleans up
        Library(folder).add(small_document("next"))
        assert leftovers(folder) == []
        assert state(folder)[-1][0] in ("next", "owl")
    assert seen == allowed
    assert number > 2
    # a new file begins as one that is left over
    assert (left > 0) == (what in ("save a new file", "save over a file", "add", "replace"))


def test_data_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any) -> Any:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(given[0]).st_mode)
            calls.append("fsync of the folder" if is_folder else name)
            return call(*given)

        return noting

    for name in ("write", "fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    for replaces, naming in ((True, "replace"), (False, "rename")):
        calls.clear()
        OLD.save(tmp_path / naming, replaces=replaces)
        assert list(dict.fromkeys(calls)) == ["write", "fsync", naming, "fsync of the folder"]
        assert calls[-3:] == ["fsync", naming, "fsync of the folder"]


def failing(call: Callable[..., Any], number: int, code: int) -> Callable[..., Any]:
    """The call, which fails from its time `number` on."""
    made = 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made >= number:
            raise OSError(code, os.strerror(code))
        return call(*given, **named)

    return counted


FAILURES = [
    ("open", 1, errno.EACCES, "permission denied. Check the rights"),
    ("open", 1, errno.EROFS, "the file system is read-only"),
    ("open", 1, errno.EMFILE, "too many files are open"),
    ("write", 1, errno.ENOSPC, "the disk is full. Make room"),
    ("write", 2, errno.EDQUOT, "the disk quota is used up"),
    ("write", 5, errno.EFBIG, "the file system takes no file of this size"),
    ("write", 7, errno.EIO, "Input/output error. Check the path"),
    ("lseek", 1, errno.EIO, "Input/output error"),
    ("fsync", 1, errno.EIO, "Input/output error"),
    ("fsync", 1, errno.ENOSPC, "the disk is full"),
    ("replace", 1, errno.EPERM, "permission denied"),
]


@pytest.mark.parametrize(("name", "number", "code", "told"), FAILURES)
def test_a_failing_call_is_told_and_leaves_all_as_it_was(
    name: str, number: int, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OLD.save(tmp_path / "owl")
    before = (tmp_path / "owl").read_bytes()
    for target in ("owl", "other"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing(getattr(os, name), number, code))
            with pytest.raises(LongFocusError, match=f"{target} cannot be written: {told}"):
                NEW.save(tmp_path / target)
        assert (tmp_path / "owl").read_bytes() == before
        assert os.listdir(tmp_path) == ["owl"]


@pytest.mark.parametrize("room", [0, 1, 8, 100, 3000, 8000, 12000])
def test_a_full_disk_leaves_all_as_it_was(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OLD.save(tmp_path / "owl")
    before, write, left = (tmp_path / "owl").read_bytes(), os.write, room
    assert len(before) > room

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, data[:left])
        left -= done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(LongFocusError, match="owl cannot be written: the disk is full"):
            NEW.save(tmp_path / "owl")
    assert os.listdir(tmp_path) == ["owl"]
    assert (tmp_path / "owl").read_bytes() == before


def test_writes_that_take_a_few_bytes_at_a_time_write_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NEW.save(tmp_path / "whole")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    NEW.save(tmp_path / "slow")
    assert (tmp_path / "slow").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_folder_that_cannot_be_written_down_is_told_and_holds_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(os.fsync, 2, errno.EIO))
        with pytest.raises(LongFocusError, match="owl cannot be written: Input/output error"):
            NEW.save(tmp_path / "owl")
    DocumentMemory.load(tmp_path / "owl").verify()
    assert os.listdir(tmp_path) == ["owl"]
    # file systems that do not know the call
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 2, errno.EINVAL))
    OLD.save(tmp_path / "owl")
    assert DocumentMemory.load(tmp_path / "owl").hash == OLD.hash


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LongFocusError("no"), ValueError("no")])
def test_what_a_writer_raises_is_raised_and_leaves_all_as_it_was(
    error: BaseException, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("old")

    def write() -> None:
        with whole_file(tmp_path / "f") as descriptor:
            write_all(descriptor, b"new")
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    assert raised.value is error
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_the_unfinished_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "one") as one:
        with whole_file(tmp_path / "two") as two:
            write_all(two, b"2")
        write_all(one, b"1")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "1", "two": "2"}


@pytest.mark.parametrize("moment", ["locked", "removed"])
def test_a_writer_whose_new_file_was_taken_for_a_leftover_begins_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, taken = atomic.fcntl.flock, []

    def after_another(descriptor: int, operation: int) -> None:
        """Another writer comes between the making of the file and its lock, twice."""
        if len(taken) < 2:
            taken.append(next(tmp_path.glob(".longfocus-*.part")))
            taken[-1].unlink()
            if moment == "locked":
                raise BlockingIOError
        flock(descriptor, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", after_another)
    with whole_file(tmp_path / "f") as descriptor:
        write_all(descriptor, b"whole")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"whole"
    assert len(set(taken)) == 2


def test_without_locks_files_are_written_and_leftovers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.fcntl, "flock", failing(atomic.fcntl.flock, 1, errno.ENOLCK))
    leftover = tmp_path / ".longfocus-0.part"
    leftover.write_text("may be of a living writer")
    OLD.save(tmp_path / "owl")
    OLD.save(tmp_path / "new", replaces=False)
    with pytest.raises(LongFocusError, match="new exists already"):
        NEW.save(tmp_path / "new", replaces=False)
    move_new(tmp_path / "new", tmp_path / "newer")
    with pytest.raises(FileExistsError):
        move_new(tmp_path / "owl", tmp_path / "newer")
    assert sorted(os.listdir(tmp_path)) == [leftover.name, "newer", "owl"]
    assert DocumentMemory.load(tmp_path / "newer").hash == OLD.hash


@pytest.mark.parametrize("replaces", [True, False])
def test_a_link_in_place_of_a_file_is_never_followed(replaces: bool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("owl", ".longfocus-0.part"):
        (folder / name).symlink_to(victim)
    if replaces:
        OLD.save(folder / "owl")
        assert DocumentMemory.load(folder / "owl").hash == OLD.hash
    else:
        with pytest.raises(LongFocusError, match="owl exists already"):
            OLD.save(folder / "owl", replaces=False)
        assert (folder / "owl").is_symlink()
    assert victim.read_text() == "not ours"
