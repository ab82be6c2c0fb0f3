"""What callers give to a session, checked before a model or a tokenizer meets it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from longfocus.errors import LongFocusError

_TOLD_CHARACTERS = 100


def questions_of(given: object) -> list[str] | list[list[int]]:
    """Texts, or rows of token ids. Raises LongFocusError for anything else, and for none."""
    if isinstance(given, Tensor):
        return _ids_of(given)
    rows = [given] if isinstance(given, str) else given
    if isinstance(rows, list | tuple) and rows:
        if all(isinstance(row, str) for row in rows):
            return list(cast(Sequence[str], rows))
        if all(_is_ids(row) for row in rows):
            return [list(row) for row in rows]
    raise LongFocusError(
        "What is asked must be a text, a list of texts, or token ids: a list of lists of whole numbers, or a tensor "
        f"[batch, tokens], with at least one token each. Got {_told(given)}."
    )


def prefix_of(given: object) -> tuple[int, ...]:
    """Token ids that begin every window. Raises LongFocusError for anything else."""
    ids = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
    if ids is None or not all(type(token) is int for token in ids):
        raise LongFocusError(f"window_prefix must be 'bos' or token ids. Got {_told(given)}.")
    return ids


def _is_ids(row: Any) -> bool:
    return (
        isinstance(row, list | tuple) and len(row) > 0 and all(type(token) is int for token in row)
    )


def _ids_of(given: Tensor) -> list[list[int]]:
    is_whole = not given.is_floating_point() and given.dtype != torch.bool
    if given.dim() not in (1, 2) or not given.numel() or not is_whole:
        raise LongFocusError(
            "The token ids of questions must be whole numbers [batch, tokens], with at least one token each. Got "
            f"{given.dtype} {list(given.shape)}."
        )
    return (given if given.dim() == 2 else given[None]).tolist()


def _told(given: object) -> str:
    told = repr(given)
    return told if len(told) <= _TOLD_CHARACTERS else f"{told[:_TOLD_CHARACTERS]}..."
