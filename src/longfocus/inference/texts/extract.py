"""The text of one file, whatever its format: plain text, HTML, or PDF.

What a file is shows in its ending, but for a PDF of another name. Another format is one more line in `file_pieces`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longfocus.inference.texts.html_text import html_text
from longfocus.inference.texts.pdf_text import pdf_pages
from longfocus.inference.texts.text_file import file_texts
from longfocus.inference.texts.unreadable import cannot_read, state_of

HTML = frozenset({".htm", ".html", ".xhtml"})
_PDF_BEGINS = b"%PDF-"


class Piece(NamedTuple):
    """Some characters of a text. Those of one part may come in several pieces, one behind the other."""

    text: str
    part: str | None
    """Name of the part that they belong to; None for what stands between parts."""


def file_pieces(path: Path, name: str) -> Iterator[Piece]:
    """A file is one part of that name, a PDF one of each page. Raises UnreadableFile before the first piece."""
    state_of(path)
    with cannot_read(path), path.open("rb") as file:
        if is_pdf(path) or file.read(len(_PDF_BEGINS)) == _PDF_BEGINS:
            for number, text in pdf_pages(file, path):
                yield Piece(text, f"{name}, page {number}")
                yield Piece("\n\n", None)
        elif path.suffix.lower() in HTML:
            file.seek(0)
            yield Piece(html_text(file.read(), path), name)
        else:
            for text in file_texts(file, path):
                yield Piece(text, name)


def is_pdf(path: Path) -> bool:
    return path.suffix.lower() == ".pdf"
