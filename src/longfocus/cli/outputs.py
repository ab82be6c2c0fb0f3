"""Files that a command writes when its work is done: refused before it begins, and written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longfocus.errors import LongFocusError


def refuse_unwritable(*paths: Path | None) -> None:
    """Raise LongFocusError for a file that could not be written, and for what is no file: it would become one."""
    for path in paths:
        if path is None:
            continue
        folder = Path(os.path.realpath(path)).parent
        is_no_file = path.exists() and not path.is_file()
        if is_no_file or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise LongFocusError(
                f"{path} cannot be written. Allowed is a file in a folder that exists and may be written to; no folder "
                "itself, and no pipe or device such as /dev/stdout. Choose another."
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of another when the block ends; of a link, of what it leads to.

    If the block fails, what was there before is left as it was. What `memory/atomic.py` does, without torch.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """All of a text or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
