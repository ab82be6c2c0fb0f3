"""A folder is one text: its files in the order of their paths, each under a header line, and a part for each."""

import logging
import os
from pathlib import Path

import pytest
from pdfs import pdf

from longfocus import LongFocusError
from longfocus.inference import source
from longfocus.inference.source import content_hash, expected_tokens, identify, open_source
from longfocus.inference.texts import folder, folder_text
from longfocus.memory.parts import SourcePart
from longfocus.training.records import CodeReader, LeftOut
from longfocus.training.sources import Source
from small import byte_tokenizer, session

FILES: dict[str, bytes] = {
    "b.py": b"b = 1",
    "a/z.py": b"z = 1\r\n",
    "a.md": "Über\n\n".encode(),
    "a/__init__.py": b"",
    "a-b/c": b"\xef\xbb\xbfmarked",
    "B.txt": b" \n",
    "long.txt": b"0123456789\n" * 9,
}
HIDDEN = {".git/config": b"x", "a/__pycache__/z.pyc": b"x", "a/.secret": b"x"}
OTHERS = {"x/picture.png": b"\x89PNG\0", "x/latin.txt": b"Schl\xfcssel", "x/y.bin": b"\0"}
WHOLE = (
    "# lib/B.txt\n \n# lib/a-b/c\nmarked\n# lib/a.md\nÜber\n\n# lib/a/__init__.py\n# lib/a/z.py\nz = 1\r\n"
    "# lib/b.py\nb = 1\n# lib/long.txt\n" + "0123456789\n" * 9
)


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "lib", {**FILES, **HIDDEN, **OTHERS})


def text_of(given: object) -> str:
    return "".join(open_source(given).texts())  # type: ignore[arg-type]


def summary(path: Path) -> str:
    opened = open_source(path)
    list(opened.texts())
    return opened.notice() or ""


def test_a_folder_is_its_files_under_header_lines_in_the_order_of_their_paths(lib: Path) -> None:
    assert text_of(lib) == WHOLE


@pytest.mark.parametrize("chunk", [3, 2**18])
def test_a_part_is_exactly_what_its_file_holds(
    chunk: int, lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longfocus.inference.texts.text_file.CHUNK", chunk)
    opened = open_source(lib)
    whole = "".join(opened.texts())
    found = {part.name: whole[part.start : part.end] for part in opened.parts()}
    assert found == {
        f"lib/{name}": content.decode("utf-8-sig") for name, content in FILES.items() if content
    }
    assert list(found) == sorted(found)
    for part in opened.parts():
        assert whole[: part.start].endswith(f"# {part.name}\n")


def test_reading_a_folder_gives_what_training_gives_for_it(lib: Path) -> None:
    (record,) = CodeReader(Source(str(lib))).records(LeftOut())
    assert record.content == WHOLE


@pytest.mark.parametrize("piece", [10, 1000])
def test_a_folder_is_tokenized_piece_by_piece_and_knows_its_parts_afterwards(
    piece: int, lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PIECE", piece)
    opened = open_source(lib)
    for _ in range(2):
        tokens = list(source.tokenize(opened, byte_tokenizer()))
        assert "".join(found.text for found in tokens) == WHOLE
        assert max(len(found.text) for found in tokens) <= piece
        assert opened.parts()[0] == SourcePart("lib/B.txt", len("# lib/B.txt\n"), 14)
        assert len(opened.parts()) == 6


def test_a_session_reads_a_folder(lib: Path) -> None:
    document = session().read(lib)
    assert (document.name, document.text) == ("lib", WHOLE)


def test_what_was_left_out_is_told_with_the_reasons(
    lib: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "longfocus"):
        list(source.tokenize(lib, byte_tokenizer()))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"In the folder {lib}: 3 of 10 files were left out: lib/x/latin.txt (is not UTF-8 text); lib/x/picture.png and "
        "1 more (looks like a binary file)."
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "longfocus"):
        list(source.tokenize(lib / "a", byte_tokenizer()))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, r"no file of the folder .* holds text\. 0 of 0 files were left out\. "),
        (HIDDEN, "0 of 0 files"),
        ({"empty": b"", "blank": b" \n"}, "0 of 2 files"),
        ({**OTHERS, "e": b""}, r"3 of 4 files were left out: .*latin.txt .is not UTF-8.*\(looks"),
        ({"p.pdf": b"none"}, "1 of 1 files were left out: f/p.pdf .is a damaged PDF"),
    ],
)
def test_a_folder_without_text_is_refused_with_what_it_holds(
    files: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.mkdir()
    for _ in range(2):
        with pytest.raises(LongFocusError, match=reason) as error:
            text_of(folder_of(path, files))
        assert str(path) in str(error.value)


def test_links_are_not_followed_out_of_the_folder(lib: Path) -> None:
    (lib.parent / "secret").mkdir()
    (lib.parent / "secret" / "key.txt").write_text("secret")
    (lib / "a" / "file").symlink_to(lib.parent / "secret" / "key.txt")
    (lib / "a" / "folder").symlink_to(lib.parent / "secret")
    (lib / "a" / "inside").symlink_to("z.py")
    given = lib / "a"
    assert text_of(given) == "# a/__init__.py\n# a/inside\nz = 1\r\n# a/z.py\nz = 1\r\n"
    assert "a/file (is a symbolic link out of the folder)" in summary(given)
    assert "a/folder (is a symbolic link to a folder)" in summary(given)
    # what is given itself may be a link
    (lib / "a" / "inside").unlink()
    (lib.parent / "link").symlink_to(lib)
    assert text_of(lib.parent / "link") == WHOLE.replace("# lib/", "# link/")


def test_loops_pipes_and_broken_links_are_left_out(lib: Path) -> None:
    (lib / "loop").symlink_to(lib)
    (lib / "up").symlink_to("..")
    (lib / "one").symlink_to("two")
    (lib / "two").symlink_to("one")
    (lib / "broken").symlink_to("nothing")
    os.mkfifo(lib / "pipe.txt")
    assert text_of(lib) == WHOLE
    assert "lib/loop and 1 more (is a symbolic link to a folder)" in summary(lib)
    assert "lib/broken and 3 more (is a broken link, a pipe" in summary(lib)
    assert "9 of 16 files" in summary(lib)


def test_a_thousand_files_are_a_thousand_parts(tmp_path: Path) -> None:
    contents = {f"{place % 7}/{place:04}.txt": f"text {place}".encode() for place in range(1000)}
    opened = open_source(folder_of(tmp_path / "f", contents))
    whole = "".join(opened.texts())
    assert [(part.name, whole[part.start : part.end]) for part in opened.parts()] == [
        (f"f/{name}", contents[name].decode()) for name in sorted(contents)
    ]


def test_a_file_that_vanishes_or_is_closed_is_left_out(
    lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(path: Path) -> list[Path]:
        found = folder.files_under(path)
        (lib / "a.md").unlink(missing_ok=True)
        return found

    may_open = Path.open

    def opened(path: Path, *given: str) -> object:
        if path.name == "b.py":
            raise PermissionError(13, "Permission denied")
        return may_open(path, *given)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(folder_text, "files_under", listed)
    text = open_source(lib)
    left = WHOLE.replace("# lib/a.md\nÜber\n\n", "").replace("# lib/b.py\nb = 1\n", "")
    assert "".join(text.texts()) == left
    assert "lib/a.md (cannot be read: No such file or directory)" in (text.notice() or "")
    assert "lib/b.py (cannot be read: Permission denied)" in (text.notice() or "")


def test_a_folder_that_may_not_be_opened_is_told(
    lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "a-b")
    assert "lib/a-b (may not be opened)" in summary(lib)

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(LongFocusError, match=r"lib cannot be read: Permission denied\."):
        text_of(lib)


def test_a_file_name_stays_one_line_of_valid_text(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/f/a\n# b\xff.txt"
    folder_of(tmp_path / "f", {"z": b"z"})
    Path(os.fsdecode(odd)).write_text("odd")
    opened = open_source(tmp_path / "f")
    assert "".join(opened.texts()) == "# f/a\ufffd# b\ufffd.txt\nodd\n# f/z\nz\n"
    assert opened.parts()[0].name == "f/a\ufffd# b\ufffd.txt"


def test_the_formats_of_a_folder_may_be_mixed(tmp_path: Path) -> None:
    files = {"a.html": b"<p>page</p>", "b.pdf": pdf("one", "", "three"), "c.txt": b"text"}
    opened = open_source(folder_of(tmp_path / "f", files))
    whole = "".join(opened.texts())
    assert whole == "# f/a.html\npage\n# f/b.pdf\none\n\nthree\n\n# f/c.txt\ntext\n"
    assert {part.name: whole[part.start : part.end] for part in opened.parts()} == {
        "f/a.html": "page\n",
        "f/b.pdf, page 1": "one",
        "f/b.pdf, page 3": "three",
        "f/c.txt": "text",
    }


def test_a_missing_package_is_no_reason_to_leave_a_file_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    given = folder_of(tmp_path / "f", {"a.txt": b"a", "b.pdf": pdf("one")})
    with pytest.raises(LongFocusError, match=r'b\.pdf is a PDF.* pip install "longfocus\[read\]"'):
        text_of(given)


def test_a_folder_is_the_same_until_a_file_of_it_changes(lib: Path) -> None:
    before = identify(lib), content_hash(lib)
    assert before == (identify(lib), content_hash(lib))
    (lib / ".git" / "config").write_text("changed")
    assert before == (identify(lib), content_hash(lib))
    (lib / "b.py").write_text("b = 22")
    assert before[0] != identify(lib)
    assert before[1] != content_hash(lib)


def test_the_size_of_a_folder_is_that_of_its_texts(lib: Path) -> None:
    folder_of(lib, {"weights.bin": b"\0" * 10**6})
    size = sum(len(content) for content in FILES.values()) + len(b"Schl\xfcssel")
    assert expected_tokens(lib) == size // 4
    assert expected_tokens(folder_of(lib, {"p.pdf": b"%PDF-"})) is None


def test_a_folder_is_called_by_its_own_name_wherever_it_is_named_from(
    lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lib)
    assert text_of(Path()) == text_of(Path("a/..")) == WHOLE
    assert open_source(Path()).name == "lib"
