"""What the files hold that a run was given, in few characters: a run goes on with the same texts or not at all."""

from collections.abc import Iterator
from hashlib import file_digest, sha256
from os import fsencode
from pathlib import Path
from typing import Any

from longfocus.inference.texts.folder import files_under


def hashes(settings: Any) -> dict[str, str]:
    """SHA-256, shortened, of the content of every file or folder among the values of settings.

    `data` that is a text may name a file, too, or a dataset.
    """
    paths = [*_paths(vars(settings).values())]
    if isinstance(data := getattr(settings, "data", None), str):
        paths.append(Path(data))
    return {str(path): _hash(path) for path in paths if path.exists()}


def file_hash(path: Path) -> str | None:
    """Of one file; None if it is not there."""
    return _hash(path) if path.is_file() else None


def _paths(values: Any) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, tuple):
            yield from _paths(value)


def _hash(path: Path) -> str:
    found = sha256()
    for file in files_under(path):
        name = file.relative_to(path).as_posix()
        with file.open("rb") as opened:
            content = file_digest(opened, "sha256")
        found.update(fsencode(f"{name}\0{content.hexdigest()}\n"))
    return found.hexdigest()[:32]
