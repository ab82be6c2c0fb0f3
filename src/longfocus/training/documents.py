"""What training reads: documents, one after the other with their running numbers, and again from any place.

A document is token ids, a loss mask and the name of its source. Here they are checked and numbered; how they become
rows is `rows.py`, where they come from `sources.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from longfocus.errors import LongFocusError

MOST_TOKEN_ID = 2**31 - 1


class Document(NamedTuple):
    """One text as training sees it."""

    tokens: np.ndarray
    """Token ids `[tokens]`, integers."""

    loss_mask: np.ndarray
    """`[tokens]`, 1 where the token is to be predicted, 0 where it is only read."""

    source: str
    """Where it came from, for the metrics."""


Given = tuple[ArrayLike, ArrayLike, str]
"""Token ids, loss mask and source name; `Document` is one."""

Documents = Iterable[Given]


class DocumentReader:
    """Documents in order. What has `__getitem__` and `__len__` is gone back to directly, all else is read again."""

    def __init__(self, documents: Documents) -> None:
        if not isinstance(documents, Iterable) and not _has_random_access(documents):
            raise LongFocusError(
                "documents must be an iterable of (token ids, loss mask, source name). Got "
                f"{type(documents).__name__}. Give a list, a generator, or an Order over a Corpus."
            )
        self._documents = documents
        # a list, a Corpus or an Order by its numbers; None for what can only be read from its beginning
        self._numbered = (
            cast("Sequence[Given]", documents) if _has_random_access(documents) else None
        )
        self.restart()

    def restart(self) -> None:
        """The next document is the first one."""
        self.read = 0
        """Documents read so far; the number of the next one."""
        self._coming = iter(self._documents) if self._numbered is None else _from(self._numbered, 0)

    def next(self) -> Document | None:
        """The next document; None at the end."""
        for given in self._coming:
            self.read += 1
            return checked(given, self.read - 1)
        return None

    def restore(self, read: int, wanted: set[int]) -> dict[int, Document]:
        """Goes to the place behind `read` documents and gives those of them whose numbers are wanted."""
        self.read = read
        if self._numbered is not None:
            self._coming = _from(self._numbered, read)
            there = _length(self._numbered)
            if there is not None and there < read:
                raise LongFocusError(_too_few(read, there))
            return {number: checked(self._numbered[number], number) for number in sorted(wanted)}
        self._coming = iter(self._documents)
        found = {}
        for number in range(read):
            given = next(self._coming, None)
            if given is None:
                raise LongFocusError(_too_few(read, number))
            if number in wanted:
                found[number] = checked(given, number)
        return found


def checked(given: Given, number: int) -> Document:
    """The document with arrays, or a LongFocusError that says what is wrong with document `number`."""
    try:
        tokens, loss_mask, source = given
    except (TypeError, ValueError) as error:
        raise LongFocusError(
            f"Document {number} must be (token ids, loss mask, source name). Got {type(given).__name__}. "
            "Give three parts, such as longfocus.training.rows.Document."
        ) from error
    tokens, loss_mask = np.asarray(tokens), np.asarray(loss_mask)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise LongFocusError(
            f"The token ids of document {number} ({source}) must be integers in one dimension. "
            f"Got {tokens.dtype} {tokens.shape}. Give what a tokenizer returns for one text."
        )
    if loss_mask.shape != tokens.shape:
        raise LongFocusError(
            f"The loss mask of document {number} ({source}) must have one entry per token, {tokens.shape}. "
            f"Got {loss_mask.shape}. Give 1 for every token to learn, 0 for the others."
        )
    if tokens.size and not 0 <= tokens.min() <= tokens.max() <= MOST_TOKEN_ID:
        raise LongFocusError(
            f"The token ids of document {number} ({source}) must lie in 0..{MOST_TOKEN_ID}. "
            f"Got {tokens.min()}..{tokens.max()}. Leave what is not to be learnt out of the loss mask instead."
        )
    return Document(tokens, loss_mask, source)


def _has_random_access(documents: object) -> bool:
    # a protocol of two methods, which generators do not have
    return hasattr(documents, "__getitem__") and hasattr(documents, "__len__")


def _length(documents: Sequence[Given]) -> int | None:
    """How many documents there are; None for an order without end."""
    try:
        return len(documents)
    except TypeError:
        return None


def _from(documents: Sequence[Given], start: int) -> Iterator[Given]:
    """The documents from number `start` on."""
    length = _length(documents)
    numbers = count(start) if length is None else range(start, length)
    return (documents[number] for number in numbers)


def _too_few(read: int, there: int) -> str:
    return (
        f"The state was saved after {read} documents, but there are only {there}. "
        "A state continues over the same documents. Give those, or begin anew."
    )
