"""A library shares its folder with other programs and other processes."""

import os
import re
import traceback
import warnings
from pathlib import Path

import pytest
from small_documents import small_document

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory.library import Library


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "books")


def test_files_of_others_are_left_alone(library: Library) -> None:
    foreign = [
        "README.md",
        "notes.txt",
        ".hidden.safetensors",
        "owl.safetensors.bak",
        "safetensors",
    ]
    for name in foreign:
        (library.folder / name).write_text("not ours")
    (library.folder / "sub").mkdir()
    library.add(small_document())
    assert library.names() == ["owl"]
    assert [document.name for document in library] == ["owl"]
    library.remove("owl")
    assert sorted(os.listdir(library.folder)) == sorted([*foreign, "sub"])
    assert all((library.folder / name).read_text() == "not ours" for name in foreign)


def test_a_file_that_is_no_document_is_named_not_passed_over(library: Library) -> None:
    library.add(small_document())
    (library.folder / "bad.safetensors").write_text("not ours")
    assert library.names() == ["bad", "owl"]
    assert library.open("owl").name == "owl"
    for use in (library.select, lambda: library.select("b*"), lambda: library.open("bad")):
        with pytest.raises(LongFocusError, match=r"bad\.safetensors is not a file of LongFocus"):
            use()
    library.remove("bad")
    assert [document.name for document in library] == ["owl"]


def test_files_may_come_and_go_by_hand(library: Library, tmp_path: Path) -> None:
    small_document("somewhere else").save(library.folder / "by hand %41.safetensors")
    assert library.names() == ["by hand A"]
    assert library.open("by hand A").name == "by hand A"
    library.add(small_document("by hand A", seed=1), replaces=True)
    assert os.listdir(library.folder) == ["by hand %41.safetensors"]
    (library.folder / "by hand A.safetensors").write_bytes(b"")
    with pytest.raises(LongFocusError, match=r"both the document 'by hand A'. Rename one"):
        library.names()


def test_names_that_are_no_text_can_be_told(library: Library) -> None:
    os.close(os.open(os.fsencode(library.folder) + b"/\xff%41.safetensors", os.O_CREAT))
    assert library.names() == ["\ufffdA"]
    library.remove("\ufffdA")
    assert len(library) == 0


def test_a_document_that_vanishes_meanwhile_is_passed_over_unless_it_was_asked_for(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        library.add(small_document(name))
    load = DocumentMemory.load

    def late(path: Path) -> DocumentMemory:
        (library.folder / "a.safetensors").unlink(missing_ok=True)
        return load(path)

    monkeypatch.setattr(DocumentMemory, "load", late)
    assert [document.name for document in library.select("*")] == ["b"]
    monkeypatch.undo()
    library.add(small_document("a"))
    monkeypatch.setattr(DocumentMemory, "load", late)
    with pytest.raises(LongFocusError, match=r"a\.safetensors cannot be read: No such file"):
        library.select("a", "b")


@pytest.mark.parametrize("folder", ["file", "file/inner", "a\0b", "\ud800", "x" * 300, "link"])
def test_what_can_be_no_folder_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(LongFocusError, match=r"cannot be|is a file|exists already"):
        Library(f"{tmp_path}/{folder}")


def adding(library: Library, seed: int, turns: int, start: int) -> tuple[int, int]:
    """Another process that adds documents once `start` can be read, and a pipe that says which it could."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        # Python warns of the idle threads of torch, which a tiny document does not wake
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    try:
        os.read(start, 1)
        for turn in range(turns):
            try:
                library.add(small_document(f"same {turn}", seed=seed))
                os.write(writes, bytes([turn]))
            except LongFocusError as error:
                if not re.search("exists already|already has", str(error)):
                    raise
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def test_of_two_processes_that_add_the_same_name_exactly_one_wins(library: Library) -> None:
    turns = 60
    start, ready = os.pipe()
    writers = [adding(library, seed, turns, start) for seed in range(2)]
    os.write(ready, b"go")
    won = []
    for child, reads in writers:
        with open(reads, "rb") as told:
            won.append(set(told.read()))
        assert os.waitpid(child, 0)[1] == 0
    assert won[0] | won[1] == set(range(turns))
    assert not won[0] & won[1]
    for turn in range(turns):
        found = library.open(f"same {turn}")
        found.verify()
        assert found.layers[1].key.equal(small_document(seed=int(turn in won[1])).layers[1].key)
    for end in (start, ready):
        os.close(end)
