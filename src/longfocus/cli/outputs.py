"""Files that a command writes when its work is done: refused before it begins."""

import os
from pathlib import Path

from longfocus.errors import LongFocusError


def refuse_unwritable(*paths: Path | None) -> None:
    """Raise LongFocusError for a file that could not be written."""
    for path in paths:
        if path is None:
            continue
        folder = path.resolve().parent
        if not folder.is_dir() or path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise LongFocusError(
                f"{path} cannot be written. Allowed is a file in a folder that exists and may be written to. "
                "Choose another."
            )
