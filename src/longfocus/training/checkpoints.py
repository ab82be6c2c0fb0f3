"""Checkpoints of the trainer: which of them are whole, and what they hold beside transformers' own files.

    DIR/checkpoints/checkpoint-200/    weights, optimizer, schedule, random states    (transformers.Trainer)
                                   rows-0.pt, rows-1.pt ...    rows and method of every process

A rank's file is written last, so a checkpoint with all of them is whole; one that was cut off by a kill or a full
disk is passed over.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from longfocus.errors import LongFocusError

FOLDER = "checkpoints"


def save_rank(checkpoint: Path, rank: int, ranks: int, state: Mapping[str, Any]) -> None:
    """Write what one process needs to go on; a kill leaves either no file or a whole one."""
    file = _rank_file(checkpoint, rank)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        torch.save({"ranks": ranks, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def load_rank(checkpoint: Path, rank: int) -> dict[str, Any]:
    file = _rank_file(checkpoint, rank)
    try:
        return torch.load(file, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise LongFocusError(
            f"{file} cannot be read: {error} It must be as it was written. Remove {checkpoint}: the same command then "
            "goes on from the checkpoint before it, or begins anew if there is none."
        ) from error


def latest(directory: Path, ranks: int) -> Path | None:
    """The newest whole checkpoint in a training's directory, None if there is none.

    Raises LongFocusError if it was written by another number of processes.
    """
    found = {}
    for folder in (directory / FOLDER).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            found[int(match[1])] = folder
    for step in sorted(found, reverse=True):
        first = _rank_file(found[step], 0)
        if not first.exists():
            continue
        wrote = load_rank(found[step], 0)["ranks"]
        if not all(_rank_file(found[step], rank).exists() for rank in range(wrote)):
            continue
        if wrote != ranks:
            raise LongFocusError(
                f"{found[step]} was written by {wrote} processes, each with its own documents. Got {ranks} now. "
                f"Continue with {wrote} processes, or train into another directory."
            )
        return found[step]
    return None


def _rank_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"rows-{rank}.pt"
