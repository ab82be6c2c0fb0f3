"""Which characters of a document's text came from where: from a file of a folder, or from a page of a PDF."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourcePart:
    """A run of characters of the whole text that came from one place."""

    name: str
    """A path such as `mylib/core/loop.py`, or a page such as `paper.pdf, page 3`."""
    start: int
    """First character; a header line that names the part stands before it."""
    end: int
    """Past the last character."""
