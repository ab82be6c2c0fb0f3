"""The directory that a training writes: which one may be used, and what was trained there."""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from longfocus.errors import LongFocusError

RECIPE_FILE = "recipe.json"
MODEL_FILE = "config.json"
DATA_FOLDER = "data"
"""What was made of the data; it says itself what it belongs to, so a directory with nothing else counts as empty."""
MAY_CHANGE = ("cpu_minutes",)


def open_output(directory: Path, recipe: Any) -> bool:
    """Make `directory` ready for a training by `recipe`, a dataclass, and write it; True if it is finished already.

    A new or empty directory is taken, one with the same recipe is continued. Only `cpu_minutes` may differ, and what
    an older recipe does not have counts as left at its default. Raises LongFocusError for every other one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise LongFocusError(
            f"The output directory cannot be made: {directory} ({error.strerror}). Choose a directory that may "
            "be written to."
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise LongFocusError(
            f"The output directory cannot be written to: {directory}. Choose another, or change its rights."
        )
    wanted = _as_written(recipe.to_dict())
    file = directory / RECIPE_FILE
    is_unused = all(entry.name in (DATA_FOLDER, RECIPE_FILE) for entry in directory.iterdir())
    # a first start that failed must not bind the corrected one
    if file.exists() and not is_unused:
        _check_same(directory, {**_defaults(recipe), **_read(file)}, wanted)
    elif not is_unused:
        raise LongFocusError(
            f"The output directory is not empty and holds no {RECIPE_FILE} of a training to go on with: "
            f"{directory}. Choose a new directory, or empty this one."
        )
    if (directory / MODEL_FILE).exists():
        return True
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    temporary.replace(file)
    return False


def _defaults(recipe: Any) -> dict[str, Any]:
    return _as_written(
        {own.name: own.default for own in fields(recipe) if own.default is not MISSING}
    )


def _as_written(entries: Mapping[str, Any]) -> dict[str, Any]:
    # entries may be dataclasses themselves
    return dict(json.loads(json.dumps(entries, default=asdict)))


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError):
        raise LongFocusError(
            f"{file} is not a recipe that LongFocus wrote. Choose a new directory, or remove the file."
        ) from None


def _check_same(directory: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    names = sorted((set(found) | set(wanted)) - set(MAY_CHANGE))
    differing = [
        f"{name}: there {found.get(name)!r}, asked {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise LongFocusError(
            f"{directory} holds a training by another recipe ({'; '.join(differing)}). Give the same options to "
            "continue it, or another directory."
        )
