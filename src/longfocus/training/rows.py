"""Rows of a batch that keep their document until it ends (FoT: the document-aware pipeline of the published code).

A batch is cut from R = batch_size / packing long rows of W = packing * length tokens. Before each batch every row, from
the first to the last, takes whole next documents while it holds fewer than W + 1 tokens; the batch is its first W
tokens, targets are the same one further, and W tokens leave:

    row 0   |aaaaaaaa|aaaaaaaa|aaadddddd|...      a row's next batch goes on where its last one ended,
    row 1   |bbbbbccc|cccccccc|ceeeeeee|...       so batch entries of one row are windows of one document

With packing k a row gives k consecutive entries: earlier ones are positives of later ones. `linear_rows` is one row
over the whole batch. A finite source ends with batches that are not full: what is missing is token 0 with loss mask 0.
Not here: who sees whom (`core/plans.py`), and the order of documents (`mixture.py`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.training.documents import Document, DocumentReader, Documents

__all__ = ["Document", "Documents", "Rows", "document_rows", "linear_rows"]

Batch = dict[str, Any]
"""Arrays `[batch_size, length]`: `input_tokens` and `target_tokens` (int32), `loss_masks` (float32, of the targets),
`documents` (int64, number of each input token's document, -1: no token); and `metrics` (dict)."""

STATE_FORMAT = 1


def document_rows(
    documents: Documents, *, batch_size: int, length: int, packing: int = 1, pad: bool = False
) -> "Rows":
    """Batches in which a row keeps its document until it ends; each document gives `packing` entries of a batch.

    `pad` begins every document at the beginning of a row's windows (filled up with token 0, mask 0), and no document's
    first token is a target.
    """
    return Rows(documents, RowSettings("documents", batch_size, length, packing, pad))


def linear_rows(documents: Documents, *, batch_size: int, length: int) -> "Rows":
    """Batches cut from all documents joined to one text: entry i goes on where entry i - 1 ends."""
    return Rows(documents, RowSettings("linear", batch_size, length, batch_size, False))


@dataclass(frozen=True)
class RowSettings:
    """What a state belongs to."""

    kind: Literal["documents", "linear"]
    batch_size: int
    length: int
    packing: int
    pad: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "packing"):
            if getattr(self, name) < 1:
                raise LongFocusError(
                    f"{name} must be at least 1. Got {getattr(self, name)}. Give how many there shall be."
                )
        if self.batch_size % self.packing:
            raise LongFocusError(
                f"batch_size={self.batch_size} is not divisible by packing={self.packing}: every document gives "
                "`packing` entries of a batch. Give a multiple, such as "
                f"batch_size={self.packing * (self.batch_size // self.packing + 1)}."
            )

    @property
    def rows(self) -> int:
        return self.batch_size // self.packing

    @property
    def row_tokens(self) -> int:
        """W, what a row gives to each batch."""
        return self.packing * self.length


class _Held(NamedTuple):
    """What a row still has of its document."""

    document: Document
    number: int
    offset: int
    end: int
    """Its length with padding."""


class _Buffers(NamedTuple):
    """One batch as `[rows, row_tokens + 1]`: the last column is a target only."""

    tokens: np.ndarray
    loss_masks: np.ndarray
    documents: np.ndarray
    sources: Counter[str]


class Rows:
    """Batches, in order; `for batch in rows` goes on from where the last loop stopped, or from a loaded state.

    After the end the next loop begins anew. `state_dict()` between two batches says what the next one needs.
    """

    def __init__(self, documents: Documents, settings: RowSettings) -> None:
        self.settings = settings
        self._reader = DocumentReader(documents)
        self._begin()

    def __iter__(self) -> Iterator[Batch]:
        if self._is_finished:
            self._reader.restart()
            self._begin()
        elif self._is_torn:
            # an error or Ctrl-C ended the last loop inside a batch: back to where that began
            self.load_state_dict(self.state_dict())
        while (batch := self._next_batch()) is not None:
            yield batch
        self._is_finished = True
        if not self._tokens:
            raise LongFocusError(self._why_empty())

    def state_dict(self) -> dict[str, Any]:
        """The place, as JSON: for every row which document it holds and from which token on, no tokens."""
        held = [
            held
            and {
                "document": held.number,
                "offset": held.offset,
                "tokens": len(held.document.tokens),
            }
            for held in self._held
        ]
        return {
            "format": STATE_FORMAT,
            "settings": asdict(self.settings),
            "documents": self._read,
            "tokens": self._tokens,
            "rows": held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place of `state_dict()`, over the same documents; the next batch is the one that came then."""
        self._check_state(state)
        places = [place for place in state["rows"] if place]
        found = self._reader.restore(state["documents"], {place["document"] for place in places})
        for place in places:
            there = len(found[place["document"]].tokens)
            if there != place["tokens"]:
                raise LongFocusError(
                    f"Document {place['document']} has {there} tokens, but had {place['tokens']} when the state was "
                    "saved. A state continues over the same documents in the same order. Give those, or begin anew."
                )
        self._held = [
            place and self._hold(found[place["document"]], place["document"], place["offset"])
            for place in state["rows"]
        ]
        self._read, self._tokens = state["documents"], state["tokens"]
        self._is_finished = self._is_torn = False

    def _check_state(self, state: dict[str, Any]) -> None:
        mine = {"format": STATE_FORMAT, **asdict(self.settings)}
        its = {"format": state.get("format"), **state.get("settings", {})}
        differing = [
            f"{name}: there {its.get(name)!r}, here {value!r}"
            for name, value in mine.items()
            if its.get(name) != value
        ]
        if differing:
            raise LongFocusError(
                f"The state belongs to rows of other settings ({'; '.join(differing)}). A state continues with the "
                "settings that it was saved with. Give those, or begin anew."
            )

    def _begin(self) -> None:
        # what the batches given so far have used, set together when one is complete
        self._held: list[_Held | None] = [None] * self.settings.rows
        self._read = self._tokens = 0
        self._is_finished = self._is_torn = False

    def _hold(self, document: Document, number: int, offset: int = 0) -> _Held:
        end = len(document.tokens)
        if self.settings.pad:
            end += -end % self.settings.row_tokens
        return _Held(document, number, offset, end)

    def _take_document(self) -> _Held | None:
        """The next document that has tokens; empty ones are read and counted, as in the published code."""
        while (document := self._reader.next()) is not None:
            if len(document.tokens):
                return self._hold(document, self._reader.read - 1)
        return None

    def _next_batch(self) -> Batch | None:
        """The next batch; None when no row has a token with a target left."""
        self._is_torn = True
        shape = (self.settings.rows, self.settings.row_tokens + 1)
        buffers = _Buffers(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.float32),
            np.full(shape, -1, np.int64),
            Counter(),
        )
        held = [self._fill(buffers, row) for row in range(self.settings.rows)]
        self._held, self._read, self._is_torn = held, self._reader.read, False
        if not (buffers.documents[:, 1:] >= 0).any():
            return None
        self._tokens += buffers.sources.total()
        return self._batch(buffers)

    def _fill(self, buffers: _Buffers, row: int) -> _Held | None:
        """Writes one row of the batch; gives what the row holds for the next one."""
        size, position = self.settings.row_tokens + 1, 0
        held = self._held[row] or self._take_document()
        while held is not None:
            taken = min(held.end - held.offset, size - position)
            self._copy(held, buffers, row, position, taken)
            # the last column is a target, it comes again as an input
            buffers.sources[held.document.source] += min(taken, size - 1 - position)
            position += taken
            if position == size:
                return held._replace(offset=held.offset + taken - 1)
            held = self._take_document()
        return None

    def _copy(self, held: _Held, buffers: _Buffers, row: int, position: int, taken: int) -> None:
        """Writes `taken` tokens of a document; beyond its end the buffers stay what padding is."""
        here = slice(held.offset, held.offset + taken)
        tokens = held.document.tokens[here]
        there = slice(position, position + len(tokens))
        buffers.tokens[row, there] = tokens
        buffers.loss_masks[row, there] = held.document.loss_mask[here]
        buffers.documents[row, there] = held.number
        if self.settings.pad and held.offset == 0:
            buffers.loss_masks[row, position] = 0

    def _batch(self, buffers: _Buffers) -> Batch:
        shape = (self.settings.batch_size, self.settings.length)
        metrics = {
            "dataset_example_index": self._reader.read,
            "dataset_total_tokens": self._tokens,
        }
        if self.settings.kind == "documents":
            metrics |= {
                f"batch_tokens_per_source/{name}": n for name, n in buffers.sources.items() if n
            }
        return {
            "input_tokens": np.array(buffers.tokens[:, :-1]).reshape(shape),
            "target_tokens": np.array(buffers.tokens[:, 1:]).reshape(shape),
            "loss_masks": np.array(buffers.loss_masks[:, 1:]).reshape(shape),
            "documents": np.array(buffers.documents[:, :-1]).reshape(shape),
            "metrics": metrics,
        }

    def _why_empty(self) -> str:
        if not self._reader.read:
            return (
                "The corpus is empty: there was no document at all. Training needs at least one. Check the source; "
                "a generator can be read once only, give a list or a class with __iter__ to read it again."
            )
        return (
            f"The corpus is too short: {self._reader.read} documents without two tokens in one row. A token needs a "
            "next one to learn from. Give longer documents, or linear_rows, which joins them."
        )
