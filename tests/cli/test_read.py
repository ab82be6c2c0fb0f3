"""`longfocus read`: texts into a library, each once, whatever came between."""

import os
from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus import Library
from longfocus.cli import model_options
from small import TEXT, byte_tokenizer, small_model

FINISHED = "Stopped. The same command goes on from here.\nlongfocus: interrupted\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a file, and a folder of two files."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "owl.txt").write_bytes(TEXT.encode())
    (tmp_path / "lib" / "x.py").write_text("x = 1\n")
    (tmp_path / "lib" / "y.py").write_text("y = 2\n")
    return tmp_path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Not there yet: looking into it makes it."""
    made = Library.__new__(Library)
    made.folder = tmp_path / "books"
    return made


def expected(source: Any, name: str, **named: Any) -> str:
    """The hash of the document of that text."""
    tokenizer = byte_tokenizer(chat=True)
    return longfocus.read_document(small_model(), tokenizer, source, name, **named).hash


def test_every_file_and_folder_becomes_a_document(run: Any, texts: Path, library: Library) -> None:
    said = run("read", texts / "owl.txt", texts / "lib", "--library", library.folder)
    tokens = len(TEXT.encode())
    assert said.out.splitlines() == [
        f"read       owl.txt: {tokens} tokens, 0.0 MiB",
        "read       lib: 34 tokens, 0.0 MiB",
    ]
    assert (said.code, said.err) == (0, "")
    assert library.names() == ["lib", "owl.txt"]
    assert library.open("owl.txt").hash == expected(texts / "owl.txt", "owl.txt")
    assert library.open("lib").hash == expected(texts / "lib", "lib")


def test_what_is_unchanged_is_skipped_and_what_changed_is_read_again(
    run: Any, texts: Path, library: Library
) -> None:
    command = ("read", texts / "owl.txt", texts / "lib", "--library", library.folder)
    run(*command)
    before = {path: path.stat() for path in library.folder.iterdir()}
    said = run(*command)
    assert [line.split()[0] for line in said.out.splitlines()] == ["unchanged"] * 2
    assert {path: path.stat() for path in library.folder.iterdir()} == before
    (texts / "lib" / "z.py").write_text("z = 3\n")
    said = run(*command)
    assert said.out.splitlines()[0].startswith("unchanged  owl.txt: ")
    assert said.out.splitlines()[1] == "read again lib: 51 tokens, 0.0 MiB"
    assert library.open("lib").hash == expected(texts / "lib", "lib")


def test_the_standard_input_is_a_source_like_others(
    run: Any, texts: Path, library: Library
) -> None:
    said = run("read", "-", texts / "owl.txt", "--library", library.folder, typed="Über 🦉")
    assert said.code == 0
    assert library.names() == ["owl.txt", "stdin"]
    assert library.open("stdin").hash == expected(["Über 🦉"], "stdin")
    said = run("read", "-", "--name", "note", "--library", library.folder, typed="a note")
    assert said.out == "read       note: 6 tokens, 0.0 MiB\n"
    said = run("read", "-", "--name", "note", "--library", library.folder, typed="a note")
    assert said.out == "unchanged  note: 6 tokens, 0.0 MiB\n"
    together = ("read", texts / "lib", "-", "--together", "--library", library.folder)
    assert run(*together, typed="a note").code == 0
    assert (
        library.open("lib and 1 more").text
        == "# lib/x.py\nx = 1\n# lib/y.py\ny = 2\n# text 2\na note\n"
    )


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


def test_what_cannot_be_read_is_told_and_the_others_are_read(
    run: Any, texts: Path, library: Library
) -> None:
    (texts / "binary").write_bytes(b"\0" * 99)
    (texts / "empty").touch()
    sources = [texts / name for name in ("binary", "owl.txt", "empty", "lib")]
    said = run("read", *sources, "--library", library.folder)
    assert said.code == 2
    first, second = said.err.splitlines()
    assert first.startswith(f"longfocus: error: {texts}/binary looks like a binary file")
    assert "empty is empty. Give a source with text." in second
    assert len(said.out.splitlines()) == 2
    assert library.names() == ["lib", "owl.txt"]
    said = run("read", texts / "binary", "--library", library.folder)
    assert (said.code, said.out, said.err.splitlines()) == (2, "", [first])


def test_files_of_one_name_are_called_by_their_paths(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(texts)
    for number in (1, 2):
        (texts / str(number)).mkdir()
        (texts / str(number) / "owl.txt").write_text(f"text {number}")
    said = run("read", "1/owl.txt", "owl.txt", "2/owl.txt", "lib", "--library", library.folder)
    assert said.code == 0
    assert library.names() == ["1/owl.txt", "2/owl.txt", "lib", "owl.txt"]
    assert library.open("2/owl.txt").text == "text 2"
    assert library.open("owl.txt").text == TEXT


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


def test_together_is_one_document(run: Any, texts: Path, library: Library) -> None:
    command = ("read", texts / "owl.txt", texts / "lib", "--together", "--library", library.folder)
    assert run(*command).out.startswith("read       owl.txt and 1 more: ")
    assert run(*command, "--name", "all").out.startswith("read       all: ")
    assert run(*command, "--name", "all").out.startswith("unchanged  all: ")
    found = library.open("all")
    assert found.description.is_together
    assert [part.name for part in found.parts] == ["owl.txt", "lib/x.py", "lib/y.py"]


def test_metadata_types_and_prefixes_are_those_asked_for(
    run: Any, texts: Path, library: Library
) -> None:
    command = ("read", texts / "owl.txt", "--library", library.folder)
    more = ("--metadata", "language=en", "formula=a=b", "--memory-dtype", "int8")
    said = run(*command, *more, "--window-prefix", "bos")
    assert said.code == 0
    (found,) = library.select(language="e?", formula="a=b")
    named = {"metadata": {"language": "en", "formula": "a=b"}, "window_prefix": (1,)}
    source = longfocus.read_document(
        small_model(), byte_tokenizer(chat=True), texts / "owl.txt", "owl.txt", **named
    )
    assert found.hash == source.to("int8").hash
    assert run(*command, *more, "--window-prefix", "bos").out.startswith("unchanged")
    assert run(*command, *more).out.startswith("read again")


def test_stopped_by_ctrl_c_the_same_command_goes_on(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longfocus.inference import reader

    monkeypatch.setattr(reader, "BATCH_TOKENS", 32)
    kind = type(small_model())
    read_window, made = kind.read_window, []

    def stopped(*given: Any) -> None:
        made.append(1)
        # two steps for the folder, one for the file
        if len(made) == 4:
            raise KeyboardInterrupt
        read_window(*given)

    monkeypatch.setattr(kind, "read_window", stopped)
    command = ("read", texts / "lib", texts / "owl.txt", "--library", library.folder)
    said = run(*command)
    assert (said.code, said.err) == (130, FINISHED)
    assert said.out.splitlines() == ["read       lib: 34 tokens, 0.0 MiB"]
    assert library.names() == ["lib"]
    before = len(made)
    said = run(*command)
    assert [line.split()[0] for line in said.out.splitlines()] == ["unchanged", "read"]
    again = len(made) - before
    assert library.open("owl.txt").hash == expected(texts / "owl.txt", "owl.txt")
    # that one is not made again
    assert len(made) - before - again == again + 1 > 2


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


def test_a_model_without_memory_gets_one_by_the_options(
    run: Any, texts: Path, library: Library, tmp_path: Path
) -> None:
    stock = longfocus.detach(small_model.__wrapped__())
    stock.save_pretrained(tmp_path / "stock")
    byte_tokenizer(chat=True).save_pretrained(tmp_path / "stock")
    command = (
        "read",
        texts / "owl.txt",
        "--library",
        library.folder,
        "--model",
        tmp_path / "stock",
    )
    said = run(*command)
    assert said.code == 2
    assert "stock was saved without a memory. Give --memory-layers and --window" in said.err
    assert not library.folder.exists()
    said = run(*command, "--memory-layers", "1", "--window", "16")
    assert (said.code, said.out[:18]) == (0, "read       owl.txt")
    assert library.open("owl.txt").hash == expected(texts / "owl.txt", "owl.txt")
    said = run(*command, "--memory-layers", "7", "--window", "16")
    assert said.code == 2
    assert "3 layers" in said.err


def test_a_memory_of_its_own_is_not_replaced_by_options(
    run: Any, texts: Path, library: Library
) -> None:
    said = run("read", texts / "owl.txt", "--library", library.folder, "--window", "32")
    assert said.code == 2
    assert "was saved with a memory of its own. Leave out --memory-layers and --window." in said.err


def test_the_shipped_model_is_known_by_its_name(run: Any, texts: Path, library: Library) -> None:
    said = run("read", texts / "lib", "--library", library.folder, "--model", "code")
    assert (said.code, said.err) == (0, "")
    assert library.open("lib").description.read_with.window == 256
    # and with another type of its weights it is another model
    command = ("read", texts / "lib", "--library", library.folder, "--model", "code")
    assert run(*command, "--dtype", "float32").out.startswith("read again lib")


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


def test_names_may_look_like_markup_and_control_characters_are_not_printed(
    run: Any, tmp_path: Path, library: Library
) -> None:
    names = ["[red]x[blue].txt", "a\x1b[2J\nb.txt", "-rf"]
    for name in names:
        (tmp_path / name).write_text("text")
    said = run("read", *(tmp_path / name for name in names), "--library", library.folder)
    assert said.code == 0
    shown = [line[11:].partition(":")[0] for line in said.out.splitlines()]
    assert shown == [names[0], "a\ufffd[2J\ufffdb.txt", names[2]]
    assert library.names() == sorted(names)


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


def test_a_bar_is_drawn_on_a_terminal_only(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("read", texts / "lib", "--library", library.folder).err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = run("read", texts / "owl.txt", "--library", library.folder)
    assert "reading owl.txt" in said.err
    assert "\x1b" not in said.out


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
