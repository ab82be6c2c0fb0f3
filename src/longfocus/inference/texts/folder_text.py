"""Several texts as one: the files of a folder, or sources that are to be read together."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from longfocus.inference.texts.extract import Piece, file_pieces, is_pdf
from longfocus.inference.texts.folder import files_under, leads_out, not_entered, printable
from longfocus.inference.texts.source_text import SourceText, started, under_header
from longfocus.inference.texts.text_file import looks_binary
from longfocus.inference.texts.unreadable import UnreadableFile, cannot_read


class FolderText(SourceText):
    """The files of a folder in the order of their paths; what is no text is left out and counted."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(printable(name or os.path.basename(os.path.abspath(path)) or str(path)))
        self.path = path
        self.left_out: dict[str, list[str]] = {}
        """Names of what was not read, by what is wrong with it."""
        self._files = 0

    def pieces(self) -> Iterator[Piece]:
        with cannot_read(self.path), os.scandir(self.path):
            self.left_out, self._files = {}, 0
        for path, why in not_entered(self.path):
            self._files += 1
            self.left_out.setdefault(why, []).append(self._name(path))
        for file in files_under(self.path):
            self._files += 1
            name = self._name(file)
            try:
                pieces = started(self._file(file, name))
            except UnreadableFile as error:
                self.left_out.setdefault(error.why, []).append(name)
            else:
                yield from under_header(name, pieces)

    def _name(self, path: Path) -> str:
        return f"{self.name}/{printable(path.relative_to(self.path).as_posix())}"

    def _file(self, file: Path, name: str) -> Iterator[Piece]:
        if leads_out(file, self.path):
            raise UnreadableFile(
                file, "is a symbolic link out of the folder", "Give the file that it leads to."
            )
        yield from file_pieces(file, name)

    def identity(self) -> object:
        states = []
        for file in files_under(self.path):
            # what has vanished meanwhile is left out when it is read
            with suppress(OSError):
                state = file.stat()
                states.append((str(file), state.st_size, state.st_mtime_ns))
        return str(self.path.resolve()), tuple(states)

    def expected_characters(self) -> int | None:
        total = 0
        for file in files_under(self.path):
            if is_pdf(file):
                return None
            with suppress(OSError):
                total += 0 if looks_binary(file) else file.stat().st_size
        return total

    def nothing(self, characters: int) -> str:
        return (
            f"There is nothing to read: no file of the folder {self.path} holds text. {self._summary()} Text, code, "
            "HTML and PDF are read, hidden files and __pycache__ are not. Give a folder with such files."
        )

    def notice(self) -> str | None:
        return f"In the folder {self.path}: {self._summary()}" if self.left_out else None

    def _summary(self) -> str:
        """How many files there are and were left out, and for each reason the first of them."""
        reasons = []
        for why, names in self.left_out.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reasons.append(f"{names[0]}{more} ({why})")
        count = sum(map(len, self.left_out.values()))
        what = f"{count} of {self._files} files were left out"
        return f"{what}: {'; '.join(reasons)}." if reasons else f"{what}."

    def __str__(self) -> str:
        return str(self.path)


class TogetherText(SourceText):
    """Several sources under one another."""

    def __init__(self, members: Sequence[SourceText]) -> None:
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        super().__init__(members[0].name + more)
        self.members = members

    def pieces(self) -> Iterator[Piece]:
        for member in self.members:
            if isinstance(member, FolderText):
                # its files have header lines of their own
                yield from member.pieces()
            else:
                yield from under_header(member.name, started(member.pieces()))

    def identity(self) -> object:
        return tuple((member.name, member.identity()) for member in self.members)

    def expected_characters(self) -> int | None:
        expected = [member.expected_characters() for member in self.members]
        known = [characters for characters in expected if characters is not None]
        return sum(known) if len(known) == len(expected) else None

    def notice(self) -> str | None:
        notices = [notice for member in self.members if (notice := member.notice())]
        return " ".join(notices) or None

    def __str__(self) -> str:
        return f"what was given together ({self.name})"
