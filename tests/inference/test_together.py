"""Several sources read as one stream: a header line and a part for each."""

import logging
from pathlib import Path

import pytest
from pdfs import pdf

from longfocus import LongFocusError
from longfocus.inference.source import (
    content_hash,
    expected_tokens,
    identify,
    name_of,
    open_source,
    together,
    tokenize,
)
from small import byte_tokenizer, session


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "x.py").write_text("x = 1")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.pdf").write_bytes(pdf("page"))
    return [tmp_path / "b.pdf", tmp_path / "lib", tmp_path / "a.txt"]


def test_sources_stand_in_their_order_under_header_lines(files: list[Path]) -> None:
    source = together([*files, "a text\n", ["and ", "more", ""]])
    whole = "".join(source.texts())
    assert whole == (
        "# b.pdf\npage\n\n# lib/x.py\nx = 1\n# a.txt\nfirst\n# text 4\na text\n# text 5\nand more\n"
    )
    assert [(part.name, whole[part.start : part.end]) for part in source.parts()] == [
        ("b.pdf, page 1", "page"),
        ("lib/x.py", "x = 1"),
        ("a.txt", "first"),
        ("text 4", "a text\n"),
        ("text 5", "and more"),
    ]
    assert source.name == "b.pdf and 4 more"


def test_what_is_together_is_read_like_any_source(files: list[Path]) -> None:
    source = together(files[1:])
    document = session().read(source)
    assert document.text == "# lib/x.py\nx = 1\n# a.txt\nfirst\n"
    assert document.name == name_of(source) == "lib and 1 more"
    assert expected_tokens(source) == len("x = 1first") // 4
    assert expected_tokens(together(files)) is None
    assert identify(source) == identify(together(files[1:]))
    assert content_hash(source) == content_hash(document.text)
    before = identify(source)
    files[2].write_text("changed")
    assert before != identify(source)
    assert "".join(found.text for found in tokenize(source, byte_tokenizer())).endswith("changed\n")


def test_one_source_has_a_header_line_too(files: list[Path]) -> None:
    source = together(files[2])
    assert "".join(source.texts()) == "# a.txt\nfirst\n"
    assert [part.name for part in source.parts()] == ["a.txt"]
    assert source.name == "a.txt"


def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "src").mkdir(parents=True)
        (tmp_path / name / "src" / "a.py").write_text(name)
        (tmp_path / name / "a.txt").write_text(name)
    names = ["one/a.txt", "two/a.txt", "one/src", "two/src"]
    source = together(tmp_path / name for name in names)
    list(source.texts())
    assert [part.name for part in source.parts()] == [
        f"{tmp_path}/{name}" for name in ("one/a.txt", "two/a.txt", "one/src/a.py", "two/src/a.py")
    ]


def test_what_cannot_be_read_together_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match="Give at least one"):
        together([])
    with pytest.raises(LongFocusError, match=r"Got .*a\.txt more than once"):
        together([files[2], files[2]])
    with pytest.raises(LongFocusError, match="list cannot be read as text"):
        together([[1, 2]])  # type: ignore[list-item]
    (tmp_path / "empty").touch()
    with pytest.raises(LongFocusError, match=r"nothing to read: what was given together \(empty"):
        list(together([tmp_path / "empty", " \n"]).texts())
    (tmp_path / "binary").write_bytes(b"\0")
    # asked for by its name, it is not left out
    with pytest.raises(LongFocusError, match="binary looks like a binary file"):
        list(together([files[2], tmp_path / "binary"]).texts())


def test_what_was_left_out_of_a_folder_is_told(
    files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (files[1] / "b.bin").write_bytes(b"\0")
    with caplog.at_level(logging.WARNING, "longfocus"):
        list(tokenize(together([*files[1:], str(files[2])]), byte_tokenizer()))
    (record,) = caplog.records
    assert "1 of 2 files were left out: lib/b.bin (looks" in record.getMessage()
    assert "although a file of that name exists" in record.getMessage()


def test_a_hash_is_that_of_the_text_as_utf_8(files: list[Path], tmp_path: Path) -> None:
    from hashlib import sha256

    text = "Über 🦉\r\n" * 1000
    (tmp_path / "t.txt").write_bytes(text.encode())
    (tmp_path / "marked.txt").write_bytes(text.encode("utf-16"))
    expected = sha256(text.encode()).hexdigest()
    assert content_hash(text) == content_hash([text[:50], text[50:]]) == expected
    assert content_hash(tmp_path / "t.txt") == content_hash(tmp_path / "marked.txt") == expected
    assert content_hash(open_source(files[2])) == content_hash("first")
    assert content_hash([1, 2]) == content_hash((1, 2)) != content_hash([2, 1])


def test_a_hash_leaves_an_iterator_alone() -> None:
    given = iter(["text"])
    with pytest.raises(LongFocusError, match="read only once"):
        content_hash(given)
    assert list(given) == ["text"]
    with pytest.raises(LongFocusError, match="half of a surrogate pair"):
        content_hash("\ud83e")
