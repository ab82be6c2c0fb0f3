"""Files that a command writes when its work is done, refused before it begins."""

import os
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
