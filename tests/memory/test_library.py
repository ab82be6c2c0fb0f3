"""A folder of documents: any name is a file of its own inside it, and readers and writers do not disturb each other."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_documents import TEXT, answer, small_document

from longfocus import LongFocusError
from longfocus.memory import library as library_module
from longfocus.memory.library import Library
from longfocus.memory.parts import SourcePart

NAMES = [
    "owl",
    "two words",
    " leading and trailing ",
    "über/Ça/🦉.txt",
    "mylib/core/loop.py",
    "/etc/passwd",
    "../../x",
    "..",
    ".",
    ".hidden",
    "a.safetensors",
    ".safetensors",
    "100% %41 %2F %",
    'a\\b:c*d?e"f<g>h|i',
    "new\nline\ttab\x7f\x1b[2J",
    "-rf",
    "~",
    "$(reboot)",
    "[a-z]*",
    "CON",
    "é",
    "\u202egnp.exe",
    "x" * 243,
    "🦉" * 60,
]
REFUSED = ["", "  ", "\n", "x" * 244, "x" * 300, "🦉" * 61, "/" * 82, "\ud800", "a\udcffb"]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "books")


def test_every_name_is_a_file_of_its_own_inside_the_folder(library: Library) -> None:
    for seed, name in enumerate(NAMES):
        added = library.add(small_document(name, seed=seed, text="abc"))
        assert (added.name, added.hash) == (name, small_document(name, seed=seed, text="abc").hash)
    assert library.names() == sorted(NAMES)
    assert len(library) == len(NAMES)
    assert [document.name for document in library] == sorted(NAMES)
    for seed, name in enumerate(NAMES):
        assert name in library
        found = library.open(name)
        assert found.name == name
        assert found.part(1, found.token_ids.device).key.equal(
            small_document(seed=seed, text="abc").layers[1].key
        )
    assert os.listdir(library.folder.parent) == ["books"]
    assert len(os.listdir(library.folder)) == len(NAMES)
    for name in NAMES:
        library.remove(name)
    assert os.listdir(library.folder) == []


@given(st.text(min_size=1, max_size=60))
@example("%2E")
@example("%%32E")
def test_a_name_and_its_file_belong_together(name: str) -> None:
    folder = Path("/books")
    library = Library.__new__(Library)
    library.folder = folder
    try:
        path = library.path_of(name)
    except LongFocusError:
        return
    assert path.parent == folder
    assert path.resolve().parent == folder
    assert not path.name.startswith(".")
    assert library_module.unquote(path.stem) == name


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_can_be_no_file_is_refused(name: str, library: Library) -> None:
    library.add(small_document())
    for add in (
        lambda: library.add(small_document(name)),
        lambda: library.rename("owl", name),
    ):
        with pytest.raises(LongFocusError, match="Choose another"):
            add()
    assert library.names() == ["owl"]


def test_renaming_moves_the_file_and_nothing_else(library: Library) -> None:
    added = library.add(small_document("owl"))
    expected = answer(added)
    assert added.path is not None
    before = added.path.read_bytes()
    library.rename("owl", "../eagle")
    assert library.names() == ["../eagle"]
    found = library.open("../eagle")
    assert (found.name, found.hash) == ("../eagle", added.hash)
    assert found.path is not None
    assert found.path.read_bytes() == before
    assert answer(found).equal(expected)
    library.rename("../eagle", "owl")
    assert library.open("owl").path == added.path


def test_renaming_never_replaces(library: Library) -> None:
    for name in ("owl", "eagle"):
        library.add(small_document(name))
    before = {path.name: path.read_bytes() for path in library.folder.iterdir()}
    for new in ("eagle", "owl"):
        with pytest.raises(LongFocusError, match=f"already has a document '{new}'. Choose another"):
            library.rename("owl", new)
    # a file that came after the look into the folder
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Library, "_files", lambda self: {"owl": self.path_of("owl")})
        with pytest.raises(LongFocusError, match=r"eagle\.safetensors exists already"):
            library.rename("owl", "eagle")
    assert {path.name: path.read_bytes() for path in library.folder.iterdir()} == before


def test_adding_replaces_only_when_it_is_said(library: Library) -> None:
    old, new = small_document(), small_document(seed=1)
    library.add(old)
    with pytest.raises(LongFocusError, match=r"already has a document 'owl'.*replaces=True"):
        library.add(new)
    assert library.open("owl").hash == old.hash
    assert library.add(new, replaces=True).hash == new.hash
    assert (library.names(), library.open("owl").hash) == (["owl"], new.hash)


def test_documents_are_chosen_by_name_pattern_and_metadata(library: Library) -> None:
    for name, language, year in [
        ("war", "en", "1869"),
        ("peace", "en", "1870"),
        ("guerre", "fr", "1869"),
        ("[war]", "de", "1871"),
    ]:
        entries = {"language": language, "year": year}
        library.add(small_document(name, text="abc", metadata=entries))

    def names(*patterns: str, **metadata: str) -> list[str]:
        return [document.name for document in library.select(*patterns, **metadata)]

    assert names() == ["[war]", "guerre", "peace", "war"]
    assert names("war") == ["war"]
    assert names("[war]") == ["[war]"]
    assert names("*r*", "peace") == ["[war]", "guerre", "peace", "war"]
    assert names("?????") == ["[war]", "peace"]
    assert names(language="en") == ["peace", "war"]
    assert names("*r*", language="[ef]?", year="1869") == ["guerre", "war"]
    assert names(author="*") == []
    assert names(language="EN") == []


def test_an_unknown_name_is_told_with_what_to_do(library: Library) -> None:
    for name in ("war and peace", "owl"):
        library.add(small_document(name))
    told = r"books has no document 'war and piece'. Did you mean 'war and peace'\?"
    for use in (library.open, library.remove, library.select):
        with pytest.raises(LongFocusError, match=told):
            use("war and piece")
    with pytest.raises(LongFocusError, match=told):
        library.rename("war and piece", "new")
    with pytest.raises(LongFocusError, match=r"no document 'x\*'. It has 2 documents."):
        library.select("owl", "x*")
    assert "war and piece" not in library


def test_a_part_of_what_was_read_together_cannot_be_removed(library: Library) -> None:
    parts = (SourcePart("mylib/a.py", 0, 9), SourcePart("mylib/b.py", 9, len(TEXT)))
    library.add(small_document("mylib", parts=parts, is_together=True))
    library.add(small_document("pages", parts=(SourcePart("page 1", 0, 9),)))
    told = r"no document 'mylib/b.py'. It is part of 'mylib', which was read together and cannot"
    with pytest.raises(LongFocusError, match=told):
        library.remove("mylib/b.py")
    with pytest.raises(LongFocusError, match=r"no document 'page 1'. (Did|It has)"):
        library.remove("page 1")
    assert library.names() == ["mylib", "pages"]
    library.remove("mylib")
    assert library.names() == ["pages"]


def test_an_open_document_answers_the_same_after_it_was_replaced_or_removed(
    library: Library,
) -> None:
    expected = answer(small_document())
    library.add(small_document())
    # one has looked at its file before, the other has not
    used, unused = library.open("owl"), library.open("owl")
    assert answer(used).equal(expected)
    library.add(small_document(seed=1), replaces=True)
    replaced = library.open("owl")
    library.remove("owl")
    for document in (used, unused):
        assert answer(document).equal(expected)
        document.verify()
        assert document.text == TEXT
    assert answer(replaced).equal(answer(small_document(seed=1)))


def test_removing_gives_the_answer_of_never_having_added(library: Library) -> None:
    for seed, name in enumerate("abc"):
        library.add(small_document(name, seed=seed))
    with_all = answer(*library)
    library.remove("b")
    expected = answer(small_document("a", seed=0), small_document("c", seed=2))
    assert answer(*library).equal(expected)
    assert not with_all.equal(expected)


def test_the_name_of_a_file_can_be_read_by_eye() -> None:
    library = Library.__new__(Library)
    library.folder = Path("/books")
    assert library.path_of("War and Peace (1869)").name == "War and Peace (1869).safetensors"
    assert library.path_of("a/b").name == quote("a/b", safe="") + ".safetensors"
