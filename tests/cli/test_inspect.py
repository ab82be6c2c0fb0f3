"""`longfocus inspect`: what a file holds, in words, without a model; and whether it is as it was written."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import longfocus
from longfocus import DocumentMemory, Library, Session
from longfocus.inference import reader
from longfocus.inference.source import together
from longfocus.memory.tensor_file import write_tensors
from small import TEXT, byte_tokenizer, small_model

TOKENS = len(TEXT.encode())


def document(source: Any = TEXT, name: str = "owl", **named: Any) -> DocumentMemory:
    return longfocus.read_document(small_model((0, 1)), byte_tokenizer(), source, name, **named)


def rows(out: str) -> dict[str, str]:
    """The lines before the first empty one, by their first word or two."""
    lines = out.partition("\n\n")[0].splitlines()
    width = lines[0].index(lines[0].split("  ")[-1].lstrip())
    return {line[:width].strip(): line[width:] for line in lines}


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_document_is_described(run: Any, tmp_path: Path) -> None:
    made = document(metadata={"language": "en", "year": "1869"}, window_prefix=[1, 5])
    made.save(tmp_path / "owl.safetensors")
    said = run("inspect", tmp_path / "owl.safetensors")
    assert (said.code, said.err) == (0, "")
    shown = rows(said.out)
    size = (tmp_path / "owl.safetensors").stat().st_size
    # 2 layers, 2 KV heads, keys and values of 4 numbers of 4 bytes
    assert shown["file"] == f"{size:,} bytes, {made.nbytes // TOKENS} per token for keys and values"
    assert shown["document"] == "owl"
    assert shown["tokens"] == str(TOKENS)
    assert shown["memory"] == "layers (0, 1), 2 KV heads of size 4, float32"
    assert shown["read with"] == "positions window_start, window 16, prefix (1, 5)"
    assert shown["metadata"] == "language=en, year=1869"
    assert shown["source"] == f"{len(TEXT)} characters, sha256 {made.description.source_sha256}"
    assert shown["hash"] == made.hash
    assert shown["checksums"].startswith("header verified, ")
    for fact in made.description.read_with.model.items():
        assert " ".join(fact) in shown["model"]
    lines = TEXT.splitlines()
    assert said.out.partition("\n\n")[2].splitlines() == [
        f"{len(lines)} lines:",
        *(f"  | {line[:100]}{'...' if len(line) > 100 else ''}" for line in lines),
    ]


def test_of_a_long_text_the_ends_are_shown(run: Any, tmp_path: Path) -> None:
    text = "".join(f"\tline {number}\n" for number in range(1, 1001))
    longfocus.read_document(small_model(), byte_tokenizer(), text).save(tmp_path / "d")
    said = run("inspect", tmp_path / "d")
    shown = said.out.partition("\n\n")[2].splitlines()
    ends = [f"  |         line {number}" for number in (1, 2, 3, 998, 999, 1000)]
    assert shown == ["1,000 lines:", *ends[:3], "  | ...", *ends[3:]]


def test_parts_are_listed(run: Any, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for name in "abcde":
        (tmp_path / "lib" / name).write_text("x = 1\n")
    document(tmp_path / "lib").save(tmp_path / "d")
    said = run("inspect", tmp_path / "d")
    assert said.out.split("\n\n")[1].splitlines() == [
        "5 parts:",
        "  lib/a: characters 8 to 14",
        "  lib/b: characters 22 to 28",
        "  lib/c: characters 36 to 42",
        "  ... and 2 more",
    ]
    document(together(["text"])).save(tmp_path / "d")
    assert (
        "\n\n1 part, read together:\n  text 1: characters 9 to 13\n"
        in run("inspect", tmp_path / "d").out
    )


def test_a_document_of_token_ids_has_no_text(run: Any, tmp_path: Path) -> None:
    longfocus.read_document(small_model(), None, torch.arange(9), "ids").save(tmp_path / "d")
    said = run("inspect", tmp_path / "d")
    shown = rows(said.out)
    assert (shown["source"], shown["tokenizer"]) == ("token ids", "none (token ids)")
    assert "prefix" not in shown["read with"]
    assert "\n\n" not in said.out


def test_verifying_reads_every_block(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "d"
    document().save(file)
    blocks = rows(run("inspect", file).out)["checksums"].split()[2]
    assert (
        rows(run("inspect", file, "--verify").out)["checksums"] == f"all {blocks} blocks verified"
    )
    # in the keys, which nothing but --verify looks at
    damage(file, -file.stat().st_size // 2)
    assert run("inspect", file).code == 0
    said = run("inspect", file, "--verify")
    assert (said.code, said.out) == (2, "")
    assert f"{file} was altered or damaged: block 0 of 'layers." in said.err


@pytest.mark.parametrize(
    ("place", "told"), [(200, "its header has another checksum"), (3, "its header should have")]
)
def test_a_damaged_header_is_refused(place: int, told: str, run: Any, tmp_path: Path) -> None:
    document().save(tmp_path / "d")
    damage(tmp_path / "d", place)
    said = run("inspect", tmp_path / "d")
    assert (said.code, said.out) == (2, "")
    assert told in said.err


@pytest.mark.parametrize("what", ["nothing", "text", "empty", "model.safetensors"])
def test_what_is_no_file_of_ours_is_refused(
    what: str, run: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("some text, " * 9)
    (tmp_path / "empty").touch()
    folder = model if what.startswith("model") else tmp_path
    said = run("inspect", folder / what)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"longfocus: error: {folder / what} ")
    assert len(said.err.splitlines()) == 1


def test_a_session_is_described(run: Any, tmp_path: Path) -> None:
    made = Session(small_model(), byte_tokenizer(chat=True))
    made.read(TEXT, "owl")
    made.read("abc", "letters")
    made.chat("Who?", 3)
    made.save(tmp_path / "s")
    shown = rows(run("inspect", tmp_path / "s").out)
    assert shown["kind"] == "longfocus session"
    assert (shown["messages"], shown["documents"]) == ("2", "owl, letters")
    assert shown["file"] == f"{(tmp_path / 's').stat().st_size:,} bytes"
    assert "verified" in rows(run("inspect", tmp_path / "s", "--verify").out)["checksums"]
    damage(tmp_path / "s", -1)
    assert run("inspect", tmp_path / "s").code == 0
    assert run("inspect", tmp_path / "s", "--verify").code == 2


def test_a_library_is_a_table_and_a_sum(run: Any, tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.add(document(metadata={"language": "en", "year": "1869"}))
    library.add(document("abc", "a/b").to("int8"))
    said = run("inspect", tmp_path)
    assert (said.code, said.err) == (0, "")
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines()]
    assert table[3:5] == [
        ["a/b", "3", "0.0", "int8", ""],
        ["owl", str(TOKENS), "0.0", "float32", "language=en, year=1869"],
    ]
    assert said.out.splitlines()[-1] == f"2 documents, {TOKENS + 3} tokens"


def test_a_library_without_documents_says_so(run: Any, tmp_path: Path) -> None:
    said = run("inspect", tmp_path)
    assert said.code == 0
    assert said.out.splitlines()[-1] == "0 documents, 0 tokens"


def test_of_a_library_what_is_damaged_is_told_behind_the_rest(run: Any, tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name in ("a", "b", "c"):
        library.add(document(name=name))
    damage(library.path_of("a"), 200)
    damage(library.path_of("b"), -library.path_of("b").stat().st_size // 2)
    said = run("inspect", tmp_path)
    assert said.code == 2
    (told,) = [line for line in said.out.splitlines() if line.startswith("damaged: ")]
    assert f"{library.path_of('a')} was altered or damaged" in told
    assert f"2 documents, {2 * TOKENS} tokens" in said.out
    said = run("inspect", tmp_path, "--verify")
    assert said.code == 2
    told = [line for line in said.out.splitlines() if line.startswith("damaged: ")]
    assert [library.path_of(name).name in line for name, line in zip("ab", told, strict=True)] == [
        True
    ] * 2
    assert f"1 document, {TOKENS} tokens" in said.out


def test_readings_that_were_not_finished_are_listed(
    run: Any, texts: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BATCH_TOKENS", 32)
    read, calls = reader.Reading._read, iter(range(3))

    def stopped(*given: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return read(*given)

    command = ("read", texts / "owl.txt", "--library", library.folder, "--name", "o\x1bl")
    with monkeypatch.context() as patched:
        patched.setattr(reader.Reading, "_read", stopped)
        assert run(*command).code == 130
    (journal,) = library.folder.glob(".*.reading")
    before = journal.read_bytes()
    # of an earlier version, of none, and what is no file at all
    library.folder.joinpath(".old.reading").write_bytes(b'{"key":"abc"}\n')
    library.folder.joinpath(".odd.reading").write_bytes(b"\xff[" * 9999)
    library.folder.joinpath(".a.reading").mkdir()
    library.folder.joinpath(".b.reading").symlink_to(journal)
    said = run("inspect", library.folder)
    assert (said.code, said.err) == (0, "")
    told = [line for line in said.out.splitlines() if line.startswith("unfinished: ")]
    named, *others = sorted(told, key=lambda line: "does not say" in line)
    assert named.endswith(f"remove {journal}")
    assert [line.rpartition("/")[2] for line in others] == [".odd.reading", ".old.reading"]
    assert "unfinished: o\ufffdl, 0.0 MiB. The same `longfocus read` command goes on" in said.out
    assert journal.read_bytes() == before
    assert run(*command).out.startswith("read       o")
    assert not journal.exists()


@pytest.mark.parametrize("messages", [5, None, "text", {"a": 1}, [5, None], [[]]], ids=str)
def test_a_session_that_says_odd_things_of_itself_is_shown(
    messages: Any, run: Any, tmp_path: Path
) -> None:
    about = {"format": ["x"], "version": None, "messages": messages, "documents": messages}
    write_tensors(tmp_path / "s", {"ids": torch.zeros(3)}, about)
    shown = rows(run("inspect", tmp_path / "s").out)
    assert (shown["kind"], shown["messages"], shown["documents"]) == ("['x']", "0", "none")
    about["documents"] = [{"name": ["\x1b[2J"]}, {}, 7]
    write_tensors(tmp_path / "s", {"ids": torch.zeros(3)}, about)
    assert rows(run("inspect", tmp_path / "s").out)["documents"] == "['\\x1b[2J'], None"


def test_names_are_shown_whole_as_they_are_and_move_no_cursor(run: Any, tmp_path: Path) -> None:
    library = Library(tmp_path)
    names = ["[bold]x[/bold]", "[/nothing]", "n" * 150, "a\x1b[2Jb"]
    for name in names:
        library.add(document("abc", name, metadata={"note\x1b]0;": "[red]"}))
    said = run("inspect", tmp_path)
    assert said.code == 0
    for name in (*names[:3], "a\ufffd[2Jb", "note\ufffd]0;=[red]"):
        assert f"│ {name} " in said.out
    assert "\x1b" not in said.out
    said = run("inspect", library.path_of(names[3]))
    assert rows(said.out)["document"] == "a\ufffd[2Jb"
    document("red \x1b[31m\x07 text").save(tmp_path / "d")
    said = run("inspect", tmp_path / "d")
    assert said.out.endswith("1 line:\n  | red \ufffd[31m\ufffd text\n")


def test_no_model_is_needed(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document().save(tmp_path / "d")
    for name in [name for name in sys.modules if name.startswith("transformers")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert run("inspect", tmp_path / "d", "--verify").code == 0
    assert run("inspect", tmp_path).code == 0
