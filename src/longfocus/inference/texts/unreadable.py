"""A file that cannot be read as text: refused where it was asked for, left out and counted inside a folder."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import stat_result
from pathlib import Path

from longfocus.errors import LongFocusError


class UnreadableFile(LongFocusError):
    """The message names the file; `why` is what such files have in common, to count them by."""

    def __init__(self, path: Path, why: str, advice: str, detail: str = "") -> None:
        super().__init__(f"{path} {why}{detail and f' ({detail})'}. {advice}")
        self.why = why


def state_of(path: Path) -> stat_result:
    """Size and times of a file or a folder; anything else, which could block for ever, is refused."""
    with cannot_read(path):
        state = path.stat()
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise UnreadableFile(
            path,
            "is a pipe, a socket or a device",
            "Files and folders can be read: write what comes out of it to a file, and give that.",
        )
    return state


@contextmanager
def cannot_read(path: Path) -> Iterator[None]:
    """What the system refuses becomes an error that names the file."""
    try:
        yield
    except OSError as error:
        raise UnreadableFile(
            path, f"cannot be read: {error.strerror}", "Check the path and its rights."
        ) from error
