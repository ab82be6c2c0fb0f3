"""The text of a PDF, page by page, with pypdf. Text that is only a picture (a scan) is not recognised."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from longfocus.errors import extra
from longfocus.inference.texts.unreadable import UnreadableFile


def pdf_pages(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the pages that have text. All are extracted, or UnreadableFile raised, before the first."""
    pages = [_characters(text).strip() for text in _extracted(file, path)]
    if not any(pages):
        raise UnreadableFile(
            path,
            "is a PDF without text",
            "It may be a scan: recognise its text first, for example with: ocrmypdf IN.pdf OUT.pdf",
            f"{len(pages)} pages",
        )
    yield from ((number, text) for number, text in enumerate(pages, start=1) if text)


def _extracted(file: BinaryIO, path: Path) -> list[str]:
    with extra("read", f"{path} is a PDF, and reading it"):
        import pypdf
        from pypdf.errors import DependencyError, FileNotDecryptedError
    texts: list[str] = []
    try:
        reader = pypdf.PdfReader(file)
        for page in reader.pages:
            texts.append(page.extract_text())
    except DependencyError as error:
        advice = "Install what is missing with: pip install cryptography"
        raise UnreadableFile(path, "is an encrypted PDF", advice, str(error)) from error
    except FileNotDecryptedError as error:
        advice = "Decrypt it first: qpdf --decrypt --password=PASSWORD IN.pdf OUT.pdf"
        raise UnreadableFile(path, "is a PDF with a password", advice) from error
    # pypdf says itself that broken files may raise anything
    except Exception as error:
        raise UnreadableFile(
            path,
            "is a damaged PDF, or none",
            "Repair it, for example with: qpdf IN.pdf OUT.pdf; or give its text as a text file.",
            f"{str(error) or type(error).__name__}; pages read: {len(texts)}",
        ) from error
    return texts


def _characters(text: str) -> str:
    """Broken fonts give halves of surrogate pairs and zeros, which are no characters."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")
