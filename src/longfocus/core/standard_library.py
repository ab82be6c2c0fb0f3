"""The Python standard library's own source code: on every machine, never trained on, and so what is asked about."""

import sysconfig
from pathlib import Path

from longfocus.errors import LongFocusError


def folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def modules() -> list[Path]:
    """Its modules that are files, without packages, in a stable order."""
    return sorted(folder().glob("*.py"))


def source_files() -> list[Path]:
    """All of its files, those of packages too, in a stable order. Raises LongFocusError where there are none."""
    files = [path for path in sorted(folder().rglob("*.py")) if "site-packages" not in path.parts]
    if not files:
        raise LongFocusError(
            f"The standard library's source code is not installed: no .py file under {folder()}. "
            "Give a text file of your own instead."
        )
    return files
