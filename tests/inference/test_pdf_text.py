"""PDF files: a part for each page, and a reason for what has no text that could be read."""

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pypdf
import pytest
from pdfs import pdf

from longfocus import LongFocusError
from longfocus.inference.source import content_hash, expected_tokens, open_source
from longfocus.inference.texts.pdf_text import pdf_pages


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """pypdf logs what it finds wrong with a file."""
    caplog.set_level(logging.CRITICAL, "pypdf")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(LongFocusError) as error:
        list(open_source(path).texts())
    assert str(error.value).startswith(f"{path} is ")
    return str(error.value)


# one that shows its kind by its first bytes only
@pytest.mark.parametrize("name", ["a.pdf", "a.PDF", "a.txt", "a.html"])
def test_each_page_with_text_is_a_part(name: str, tmp_path: Path) -> None:
    source = open_source(written(tmp_path / name, pdf("Über page one", "", "page three")))
    whole = "".join(source.texts())
    assert whole == "Über page one\n\npage three\n\n"
    assert [(part.name, whole[part.start : part.end]) for part in source.parts()] == [
        (f"{name}, page 1", "Über page one"),
        (f"{name}, page 3", "page three"),
    ]
    assert content_hash(tmp_path / name) == content_hash(whole)


def test_the_length_of_a_pdf_is_not_known_before(tmp_path: Path) -> None:
    assert expected_tokens(written(tmp_path / "a.pdf", pdf("page"))) is None


def test_pages_that_pypdf_writes_are_read(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter()
    for text in ("one", "two"):
        writer.append(io.BytesIO(pdf(text)))
    writer.write(tmp_path / "a.pdf")
    assert "".join(open_source(tmp_path / "a.pdf").texts()) == "one\n\ntwo\n\n"


def test_pages_without_text_are_refused_as_a_scan(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pdf", pdf("", ""))
    assert "a PDF without text (2 pages). It may be a scan" in refusal(path)


WHOLE = pdf("one", "two")


@pytest.mark.parametrize(
    "content", [b"", b"%PDF-1.4\n", WHOLE[:100], WHOLE[: len(WHOLE) // 2], WHOLE[:-40], b"text"]
)
def test_a_damaged_pdf_is_refused(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.pdf", content)
    assert "is a damaged PDF, or none (" in refusal(path)


@pytest.mark.parametrize("error", [KeyError("/Foo"), RecursionError(), ZeroDivisionError("zero")])
def test_whatever_pypdf_stumbles_over_is_a_damaged_page(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = iter(["one", error])

    def extract(_: Any) -> str:
        if isinstance(found := next(pages), Exception):
            raise found
        return found

    monkeypatch.setattr(pypdf.PageObject, "extract_text", extract)
    message = refusal(written(tmp_path / "a.pdf", pdf("one", "two")))
    assert f"({str(error) or 'RecursionError'}; pages read: 1)" in message


def encrypted(password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("locked")))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    content = io.BytesIO()
    writer.write(content)
    return content.getvalue()


def test_only_a_pdf_that_asks_for_a_password_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pdf", encrypted(""))
    assert "".join(open_source(path).texts()) == "locked\n\n"
    assert "is a PDF with a password. Decrypt it first" in refusal(
        written(path, encrypted("secret"))
    )


def test_an_encryption_that_needs_a_package_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf.PdfReader, "__init__", refuse)
    message = refusal(written(tmp_path / "a.pdf", pdf("one")))
    assert message.endswith(
        "(cryptography>=3.1 is required for AES algorithm). Install what is missing with: pip install cryptography"
    )


def test_broken_fonts_give_no_halves_of_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda _: "a\ud83eb\0c\ud83e\udd89")
    path = written(tmp_path / "a.pdf", pdf("one"))
    with path.open("rb") as file:
        assert list(pdf_pages(file, path)) == [(1, "a\ufffdb\ufffdc🦉")]


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    message = refusal(written(tmp_path / "a.pdf", pdf("one")))
    assert "needs the package pypdf, which is not installed. " in message
    assert message.endswith('pip install "longfocus[read]"')
