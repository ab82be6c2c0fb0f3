"""Which files of a folder are read, in which order, and what they are called in the text."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path


def files_under(path: Path, pattern: str = "*") -> list[Path]:
    """The file itself, or the folder's files in the order of their relative paths; hidden ones are left out.

    Folders that are symbolic links are not entered.
    """
    # unlike Path.is_file, False also for what may not be looked at
    if os.path.isfile(path):
        return [path]
    found = [entry for entry in _visible(path) if os.path.isfile(entry)]
    if pattern != "*":
        fitting = set(path.rglob(pattern))
        found = [file for file in found if file in fitting]
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def not_entered(folder: Path) -> Iterator[tuple[Path, str]]:
    """What `files_under` passes over although it is not hidden, and why."""
    for entry in sorted(_visible(folder)):
        if os.path.isfile(entry):
            continue
        if not os.path.isdir(entry):
            yield entry, "is a broken link, a pipe, a socket or a device"
        elif entry.is_symlink():
            yield entry, "is a symbolic link to a folder"
        elif not os.access(entry, os.R_OK | os.X_OK):
            yield entry, "may not be opened"


def _visible(folder: Path) -> Iterator[Path]:
    """Everything inside, folders too, but for hidden things and what is in them."""
    for here, folders, files in os.walk(folder):
        # what is not in the list is not entered
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (Path(here, name) for name in (*folders, *files) if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file of the folder is a symbolic link to what lies outside of it."""
    return file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())


def header_line(name: str) -> str:
    """The line before a file's text: its path, as in the code that LongFocus models are trained on."""
    return f"# {name}\n"


def printable(name: str) -> str:
    """The name as one line of valid text: a file may be called anything."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} else letter
        for letter in name
    )
