"""`longfocus read` refuses what it cannot do, in one line, before it loads or makes anything."""

import os
from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus import Library
from longfocus.cli import model_options


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (b"", "There is nothing to read: the text is empty."),
        (b" \n", "holds only white space"),
        (b"caf\xe9", "not utf-8 text (unexpected end of data at byte 3). Convert it first"),
    ],
)
def test_a_standard_input_without_text_is_refused(
    typed: bytes, told: str, run: Any, library: Library
) -> None:
    said = run("read", "-", "--library", library.folder, typed=typed)
    assert (said.code, said.out) == (2, "")
    assert told in said.err


@pytest.mark.parametrize("other", ["owl.txt", "./owl.txt", "lib/../owl.txt", "link", "-"])
def test_a_source_that_is_given_twice_is_refused(
    other: str, run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(texts)
    (texts / "link").symlink_to("owl.txt")
    first = "-" if other == "-" else "owl.txt"
    said = run("read", first, other, "--library", library.folder, typed="text")
    assert (said.code, said.out) == (2, "")
    assert "was given twice. Give each source once." in said.err
    assert not library.folder.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{texts}/owl.txt", "{texts}/nothing"], "There is no file or folder {texts}/nothing."),
        ([], "There is nothing to read. Give files or folders"),
        (["--metadata", "a=b", "{texts}/owl.txt"], "takes KEY=VALUE. Got '{texts}/owl.txt'"),
        (["{texts}/owl.txt", "--metadata", "=b"], "--metadata takes KEY=VALUE. Got '=b'."),
        (["{texts}/owl.txt", "{texts}/lib", "--name", "x"], "--name names one document. Got 2"),
        (["{texts}/owl.txt", "--device", "nonsense"], "--device nonsense cannot be used: Expected"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded_or_made(
    words: list[str],
    told: str,
    run: Any,
    texts: Path,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(longfocus, "from_pretrained", None)
    given = [word.format(texts=texts) for word in words]
    # before the sources, so that it is not taken for one of several words
    said = run("read", "--library", library.folder, *given)
    assert (said.code, said.out) == (2, "")
    assert told.format(texts=texts) in said.err
    assert len(said.err.splitlines()) == 1
    assert not library.folder.exists()


@pytest.mark.parametrize("option", ["--dtype", "--memory-dtype", "--positions"])
def test_an_unknown_choice_is_refused_with_those_that_there_are(
    option: str, run: Any, texts: Path, library: Library
) -> None:
    said = run("read", texts / "owl.txt", "--library", library.folder, option, "int32")
    assert said.code == 2
    assert "int32" in said.err
    assert "float16" in said.err or "window_start" in said.err


def test_a_memory_of_its_own_is_not_replaced_by_options(
    run: Any, texts: Path, library: Library
) -> None:
    said = run("read", texts / "owl.txt", "--library", library.folder, "--window", "32")
    assert said.code == 2
    assert "was saved with a memory of its own. Leave out --memory-layers and --window." in said.err


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/model", "a/b/c", "~nobody/model", "../x"])
def test_a_model_that_is_not_there_is_refused_at_once(
    place: str, run: Any, texts: Path, library: Library
) -> None:
    said = run("read", texts / "owl.txt", "--library", library.folder, "--model", place)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"longfocus: error: There is no folder {place}. Give the folder")
    assert not library.folder.exists()


def test_a_library_that_is_a_file_is_refused(run: Any, texts: Path) -> None:
    said = run("read", texts / "lib", "--library", texts / "owl.txt")
    assert said.code == 2
    assert "owl.txt is a file. A library is a folder of documents." in said.err


def test_a_name_that_no_file_can_have_is_refused_with_what_to_do(
    run: Any, texts: Path, library: Library
) -> None:
    long = texts / ("x" * 250)
    long.write_text("text")
    said = run("read", long, texts / "lib", "--library", library.folder)
    assert said.code == 2
    assert "Choose another one." in said.err
    assert library.names() == ["lib"]
    assert run("read", long, "--name", "short", "--library", library.folder).code == 0


def test_rights_that_are_missing_are_told(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*given: Any, **named: Any) -> None:
        raise PermissionError(13, os.strerror(13), str(given[0]))

    monkeypatch.setattr(model_options, "_device", lambda name: "cpu")
    monkeypatch.setattr(Path, "mkdir", denied)
    said = run("read", texts / "lib", "--library", library.folder)
    assert (said.code, said.out) == (2, "")
    assert "books cannot be written: permission denied. Check the rights of the folder." in said.err
