"""`longfocus read`: texts into a library, each once, whatever came between."""

from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus import Library
from small import TEXT, byte_tokenizer, small_model

FINISHED = "Stopped. The same command goes on from here.\nlongfocus: interrupted\n"


def expected(source: Any, name: str, **named: Any) -> str:
    """The hash of the document of that text."""
    tokenizer = byte_tokenizer(chat=True)
    return longfocus.read_document(small_model(), tokenizer, source, name, **named).hash


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Tells files apart that were written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


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
    before = states(library.folder)
    said = run(*command)
    assert [line.split()[0] for line in said.out.splitlines()] == ["unchanged"] * 2
    assert states(library.folder) == before
    (texts / "lib" / "z.py").write_text("z = 3\n")
    said = run(*command)
    assert said.out.splitlines()[0].startswith("unchanged  owl.txt: ")
    assert said.out.splitlines()[1] == (
        "replaced   lib: 51 tokens, 0.0 MiB (held another text of 34 tokens; --name keeps both)"
    )
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


def test_a_link_is_called_as_it_is_given(run: Any, texts: Path, library: Library) -> None:
    (texts / "link.md").symlink_to("owl.txt")
    assert run("read", texts / "link.md", "--library", library.folder).code == 0
    assert run("read", texts / "lib" / "..", "--library", library.folder, "--name", "all").code == 0
    assert run("read", texts / "lib" / ".", "--library", library.folder).code == 0
    assert library.names() == ["all", "lib", "link.md"]
    assert library.open("link.md").text == TEXT


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
    # the same token by its number
    assert run(*command, *more, "--window-prefix", "1").out.startswith("unchanged")
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


def test_the_shipped_model_is_known_by_its_name(run: Any, texts: Path, library: Library) -> None:
    said = run("read", texts / "lib", "--library", library.folder, "--model", "code")
    assert (said.code, said.err) == (0, "")
    assert library.open("lib").description.read_with.window == 256
    # and with another type of its weights it is another model
    command = ("read", texts / "lib", "--library", library.folder, "--model", "code")
    assert run(*command, "--dtype", "float32").out.startswith("read again lib")


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


def test_a_bar_is_drawn_on_a_terminal_only(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("read", texts / "lib", "--library", library.folder).err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = run("read", texts / "owl.txt", "--library", library.folder)
    assert "reading owl.txt" in said.err
    assert "\x1b" not in said.out
