"""A library: a folder of document memories, and nothing else that could be corrupted.

    library = longfocus.Library("books")
    library.add(document)
    session = longfocus.Session(model, tokenizer, documents=library.select("war*", language="en"))

The name of a document is the name of its file, so that files can be copied, shared, renamed and deleted by any program.
There is no index. Several processes may read while others write: a file is there as a whole or not at all.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from longfocus.atomic import move_new, sync_folder, told_with
from longfocus.errors import LongFocusError
from longfocus.memory.document import DocumentMemory

SUFFIX = ".safetensors"
_MAX_NAME_BYTES = 255
# Characters that a file name cannot hold, or that mean something in a path; % begins the code of one.
_ESCAPED = set('/\\%:\x7f"*?<>|') | {chr(code) for code in range(32)}


class Library:
    """The documents of a folder, which is made if it is missing."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with told_with(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise LongFocusError(f"{folder} is a file. A library is a folder of documents.")
            self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._files())

    def __contains__(self, name: str) -> bool:
        return name in self._files()

    def __iter__(self) -> Iterator[DocumentMemory]:
        return iter(self.select())

    def names(self) -> list[str]:
        """Names of all documents, sorted. Nothing is opened."""
        return sorted(self._files())

    def add(self, document: DocumentMemory, *, replaces: bool = False) -> DocumentMemory:
        """Write a document into the folder, and return it as it lies there.

        Raises LongFocusError if there is one of that name already, unless `replaces`; readers of the old one keep it.
        """
        path, files = self.path_of(document.name), self._files()
        if document.name in files and not replaces:
            raise LongFocusError(
                f"The library {self.folder} already has a document {document.name!r}. Remove it first, choose another "
                "name, or say replaces=True."
            )
        path = files.get(document.name, path)
        document.save(path, replaces=replaces)
        return _open(document.name, path)

    def open(self, name: str) -> DocumentMemory:
        """The document of that name, mapped."""
        return _open(name, self._file(name))

    def remove(self, name: str) -> None:
        """Delete a document: every later answer is that of never having added it."""
        path = self._file(name)
        with told_with(path, "removed"):
            path.unlink()
            sync_folder(self.folder)

    def rename(self, name: str, new: str) -> None:
        """Give a document another name; its file is renamed, not rewritten."""
        wanted, path = self.path_of(new), self._file(name)
        if new in self._files():
            raise LongFocusError(
                f"The library {self.folder} already has a document {new!r}. Choose another name."
            )
        with told_with(wanted):
            move_new(path, wanted)
            sync_folder(self.folder)

    def select(self, *patterns: str, **metadata: str) -> list[DocumentMemory]:
        """Documents by name or pattern (`*`, `?`, `[...]`), all if none is given, in the order of their names.

        `metadata`: only those whose own entries match these patterns too. Raises LongFocusError for a name or
        pattern that fits none, and for a file that cannot be opened.
        """
        files = self._files()
        for pattern in patterns:
            if pattern not in files and not any(fnmatchcase(name, pattern) for name in files):
                raise self._unknown(pattern, files)
        chosen = {
            name: path
            for name, path in sorted(files.items())
            if not patterns or name in patterns or any(fnmatchcase(name, p) for p in patterns)
        }
        return [
            document
            for document in _open_all(chosen, patterns)
            if all(
                key in document.metadata and fnmatchcase(document.metadata[key], pattern)
                for key, pattern in metadata.items()
            )
        ]

    def path_of(self, name: str) -> Path:
        """Where a document of that name is written."""
        escaped = "".join(f"%{ord(c):02X}" if c in _ESCAPED else c for c in name)
        # hidden files are none of ours
        escaped = "%2E" + escaped[1:] if escaped.startswith(".") else escaped
        try:
            length = len((escaped + SUFFIX).encode())
        except UnicodeEncodeError as error:
            raise LongFocusError(
                f"{name!r} holds half of a surrogate pair. Choose another name."
            ) from error
        if not name.strip() or length > _MAX_NAME_BYTES:
            raise LongFocusError(
                f"The name of a document must have 1 to {_MAX_NAME_BYTES - len(SUFFIX)} bytes as the name of a file. "
                f"Got {name!r}. Choose another one."
            )
        return self.folder / (escaped + SUFFIX)

    def _file(self, name: str) -> Path:
        files = self._files()
        if name not in files:
            raise self._unknown(name, files)
        return files[name]

    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        with told_with(self.folder, "read"):
            for path in sorted(self.folder.iterdir()):
                if path.suffix != SUFFIX or path.name.startswith("."):
                    continue
                # the name may be bytes that are no text
                name = unquote(os.fsencode(path.stem).decode(errors="replace"))
                if name in found:
                    raise LongFocusError(
                        f"{found[name]} and {path} are both the document {name!r}. Rename one of the files."
                    )
                found[name] = path
        return found

    def _unknown(self, name: str, known: Mapping[str, Path]) -> LongFocusError:
        nearest = get_close_matches(name, known, n=1)
        advice = f"Did you mean {nearest[0]!r}?" if nearest else f"It has {len(known)} documents."
        if (whole := _document_with(name, known)) is not None:
            advice = (
                f"It is part of {whole!r}, which was read together and cannot be taken apart. Remove that, or read its "
                "texts one by one."
            )
        return LongFocusError(f"The library {self.folder} has no document {name!r}. {advice}")


_SEARCHED = 1000
"""Documents that are opened at most to find out what an unknown name means."""


def _open(name: str, path: Path) -> DocumentMemory:
    # the file may have been given another name since it was written
    return DocumentMemory.load(path).renamed(name)


def _open_all(files: Mapping[str, Path], asked_for: Collection[str]) -> Iterator[DocumentMemory]:
    for name, path in files.items():
        try:
            yield _open(name, path)
        except LongFocusError:
            # another process may have removed it since the folder was listed
            if name in asked_for or os.path.lexists(path):
                raise


def _document_with(part: str, files: Mapping[str, Path]) -> str | None:
    """The document that was read together of several, one of which has that name."""
    for name, path in islice(files.items(), _SEARCHED):
        with suppress(LongFocusError):
            document = _open(name, path)
            if document.description.is_together and part in {p.name for p in document.parts}:
                return name
    return None
