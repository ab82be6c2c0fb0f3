"""A source as text: piece by piece in bounded memory, and afterwards which characters came from where.

    one text or file    its characters
    a folder            for each file, in the order of the paths, a header line and its characters:
                            # mylib/core/loop.py
                            import ...
    several together    the same: a header line before each text or file, and the files of folders

The characters of each file under a header line, and of each page of a PDF, are a part (`SourcePart`).
"""

import os.path
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

from longfocus.errors import LongFocusError
from longfocus.inference.texts.extract import Piece, file_pieces, is_pdf
from longfocus.inference.texts.folder import header_line, printable
from longfocus.inference.texts.unreadable import state_of
from longfocus.memory.parts import SourcePart


class SourceText(ABC):
    """One source. It may be read any number of times, unless it is made of an iterator."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._parts: tuple[SourcePart, ...] | None = None

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """The characters in order, those of no part (header lines) among them."""

    @abstractmethod
    def identity(self) -> object:
        """Equal for an unchanged source; found without reading it."""

    @abstractmethod
    def expected_characters(self) -> int | None:
        """About how many there are; None if that is not known before reading."""

    def texts(self) -> Iterator[str]:
        """All characters in order. Raises LongFocusError for what is empty or cannot be read."""
        found: list[SourcePart] = []
        place, has_text = 0, False
        for text, name in self.pieces():
            yield text
            end = place + len(text)
            if name is not None and text:
                has_text = has_text or not text.isspace()
                goes_on = bool(found) and (found[-1].name, found[-1].end) == (name, place)
                found.append(SourcePart(name, found.pop().start if goes_on else place, end))
            place = end
        if not has_text:
            raise LongFocusError(self.nothing(place))
        is_one = (found[0].start, found[0].end) == (0, place)
        self._parts = () if is_one else tuple(found)

    def parts(self) -> tuple[SourcePart, ...]:
        """The parts in order; none if there is but one, the whole text. Known when `texts` was read to its end."""
        assert self._parts is not None, "texts() comes first, to its end"
        return self._parts

    def nothing(self, characters: int) -> str:
        """The message for a source without text; `characters` of white space."""
        why = "holds only white space" if characters else "is empty"
        return f"There is nothing to read: {self} {why}. Give a source with text."

    def notice(self) -> str | None:
        """What the user should know of the source that has been read."""
        return None

    def __str__(self) -> str:
        return "the text"


class OneText(SourceText):
    """A `str`, which is always text, even if it names a file."""

    def __init__(self, text: str, name: str | None = None) -> None:
        super().__init__(name or " ".join(text[:200].split())[:40] or "text")
        self.text = text

    def pieces(self) -> Iterator[Piece]:
        yield Piece(self.text, self.name)

    def identity(self) -> object:
        return sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def expected_characters(self) -> int | None:
        return len(self.text)

    def notice(self) -> str | None:
        may_be_name = len(self.text) < 4096 and "\n" not in self.text and self.text.strip()
        if not may_be_name or not os.path.isfile(self.text):
            return None
        return f"Read the text {self.text!r} itself, although a file of that name exists. For the file: Path(...)."


class ManyTexts(SourceText):
    """Texts from any iterable, one behind the other."""

    def __init__(self, given: Iterable[str], name: str | None = None) -> None:
        super().__init__(name or "text")
        self.given = given

    def pieces(self) -> Iterator[Piece]:
        for text in self.given:
            if not isinstance(text, str):
                raise LongFocusError(
                    f"An iterable source must give str. Got {type(text).__name__}."
                )
            yield Piece(text, self.name)

    def identity(self) -> object:
        # the object itself, not its id(), which another object may get later
        return _ByIdentity(self.given)

    def expected_characters(self) -> int | None:
        return None


class FileText(SourceText):
    """One file of text, HTML or PDF."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(printable(name or path.name))
        self.path = path

    def pieces(self) -> Iterator[Piece]:
        return file_pieces(self.path, self.name)

    def identity(self) -> object:
        state = state_of(self.path)
        return str(self.path.resolve()), state.st_size, state.st_mtime_ns

    def expected_characters(self) -> int | None:
        state = state_of(self.path)
        return None if is_pdf(self.path) else state.st_size

    def __str__(self) -> str:
        return str(self.path)


def under_header(name: str, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """A header line, the pieces, and a line end where they have none."""
    yield Piece(header_line(name), None)
    last = ""
    for piece in pieces:
        yield piece
        last = piece.text or last
    if last and not last.endswith("\n"):
        yield Piece("\n", None)


def started(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces; the first is fetched now, so that a file which cannot be read fails here."""
    first = next(pieces, None)
    return iter(()) if first is None else chain([first], pieces)


class _ByIdentity:
    """Equal only for the same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
