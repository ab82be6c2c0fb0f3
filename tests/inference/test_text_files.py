"""Files of plain text: what is text is read as it is, and everything else is refused before anything is read."""

import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from longfocus import LongFocusError
from longfocus.inference.source import content_hash, expected_tokens, identify, open_source
from longfocus.inference.texts import text_file

TEXT = "Über 42 Schlüssel 🦉\r\nno line\rends\n here\f\x1b[1m\b"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def text_of(path: Path) -> str:
    return "".join(open_source(path).texts())


def refusal(path: Path) -> str:
    with pytest.raises(LongFocusError) as error:
        text_of(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("chunk", [4, 7, 2**18])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.unknown", "a", "a.json"])
def test_a_text_is_read_as_it_is(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "CHUNK", chunk)
    source = open_source(written(tmp_path / name, TEXT.encode()))
    assert "".join(source.texts()) == TEXT
    assert source.parts() == ()
    assert source.name == name
    # again, from the beginning
    assert "".join(source.texts()) == TEXT


@pytest.mark.parametrize("chunk", [5, 2**18])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be"]
)
def test_a_byte_order_mark_names_the_encoding_and_is_no_text(
    encoding: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "CHUNK", chunk)
    mark = "\ufeff" if encoding.endswith("e") else ""
    assert text_of(written(tmp_path / "a.txt", (mark + TEXT).encode(encoding))) == TEXT


def test_three_characters_are_a_text(tmp_path: Path) -> None:
    assert text_of(written(tmp_path / "a.txt", b"abc")) == "abc"


def test_a_long_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "CHUNK", 10)
    texts = list(open_source(written(tmp_path / "a.txt", TEXT.encode())).texts())
    assert max(map(len, texts)) <= 10
    assert len(texts) >= len(TEXT) / 10


BINARY = {
    "zero in front": b"\0text",
    "zero far behind": b"text" * 50 + b"\0",
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "compressed": b"\x1f\x8b\x08\x08\xc3\x28\x01\x02",
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "zero in UTF-16": "text\0".encode("utf-16"),
}


@pytest.mark.parametrize("chunk", [16, 2**18])
@pytest.mark.parametrize("name", BINARY)
def test_a_binary_file_is_refused_before_its_first_character(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "CHUNK", chunk)
    path = written(tmp_path / "a.txt", BINARY[name])
    with pytest.raises(LongFocusError, match=r"looks like a binary file\. .*convert it"):
        next(open_source(path).texts())
    assert str(path) in refusal(path)


@pytest.mark.parametrize("chunk", [3, 8, 2**18])
@pytest.mark.parametrize("before", [0, 7, 40])
def test_a_byte_that_is_no_utf_8_is_named_by_its_place(
    before: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "CHUNK", chunk)
    path = written(tmp_path / "a.txt", b"x" * before + "ü und so weiter".encode("latin1"))
    with pytest.raises(LongFocusError, match=f"not UTF-8 text .*at byte {before}.*iconv"):
        next(open_source(path).texts())


def test_a_character_that_is_cut_off_at_the_end_is_named_by_its_place(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "seven: 🦉".encode()[:-1])
    assert "at byte 7" in refusal(path)
    assert "is not UTF-16 text" in refusal(written(tmp_path / "b", "a".encode("utf-16") + b"x"))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened such a file would wait for ever."""
    monkeypatch.setattr(Path, "open", lambda path, *_: pytest.fail(f"opened {path}"))


@pytest.mark.usefixtures("unopened")
def test_what_is_no_file_is_refused_and_never_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (pipe, tmp_path / "socket", Path("/dev/null"), Path("/dev/zero")):
            assert "is a pipe, a socket or a device. " in refusal(path)
            for look in (identify, expected_tokens, content_hash):
                with pytest.raises(LongFocusError, match="a device"):
                    look(path)


def test_a_file_without_the_right_to_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.txt", b"text")

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    assert "cannot be read: Permission denied. Check" in refusal(path)
    monkeypatch.setattr(Path, "stat", closed)
    for look in (identify, expected_tokens):
        with pytest.raises(LongFocusError, match="cannot be read: Permission denied"):
            look(path)


@pytest.mark.parametrize("name", ["missing", "given/inside", "x" * 5000])
def test_a_path_that_leads_nowhere_is_named_with_the_reason(name: str, tmp_path: Path) -> None:
    written(tmp_path / "given", b"text")
    assert "cannot be read" in refusal(tmp_path / name)
    with pytest.raises(LongFocusError, match="cannot be read"):
        identify(tmp_path / name)


def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "CHUNK", 10)
    path = written(tmp_path / "a.txt", TEXT.encode())
    texts = open_source(path).texts()
    first = next(texts)
    path.unlink()
    assert first + "".join(texts) == TEXT


def test_a_link_to_a_file_is_read_and_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"text")
    (tmp_path / "link").symlink_to("a.txt")
    assert text_of(tmp_path / "link") == "text"
    for one, other in pairwise(["x", "y", "x"]):
        (tmp_path / one).symlink_to(other)
    assert "cannot be read: Too many levels" in refusal(tmp_path / "x")
