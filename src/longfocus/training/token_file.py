"""Tokenised documents in one Arrow file, written once and memory-mapped: any document costs only its own pages.

Columns `tokens` (list of int32) and `loss_mask` (list of uint8; empty: all but the first token). `datasets` opens the
file too, with `Dataset.from_file`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longfocus.errors import extra
from longfocus.training.chat import Encoded

BATCH_TOKENS = 2**20


def write_tokens(path: Path, documents: Iterable[Encoded]) -> Iterator[int]:
    """Writes the documents; gives how many are written, whenever some are."""
    pyarrow = _pyarrow()
    types = {"tokens": pyarrow.int32(), "loss_mask": pyarrow.uint8()}
    schema = pyarrow.schema([(name, pyarrow.list_(kind)) for name, kind in types.items()])
    count = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        for batch in _batches(documents):
            columns = {
                "tokens": [document.tokens for document in batch],
                "loss_mask": [_stored_mask(document) for document in batch],
            }
            stream.write_batch(
                pyarrow.record_batch(
                    [_lists(columns[name], types[name]) for name in types], schema=schema
                )
            )
            count += len(batch)
            yield count


class TokenFile:
    """Random access to the documents of a file."""

    def __init__(self, path: Path) -> None:
        pyarrow = _pyarrow()
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
            batches = list(stream)
        self._tokens = [_arrays(batch.column("tokens")) for batch in batches]
        self._masks = [_arrays(batch.column("loss_mask")) for batch in batches]
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.lengths = np.concatenate(
            [np.zeros(0, np.int64), *(np.diff(offsets) for offsets, _ in self._tokens)]
        ).astype(np.int64)
        """Tokens of every document."""

    def __getitem__(self, index: int) -> Encoded:
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        place = index - int(self._first[batch])
        mask = _list(self._masks[batch], place)
        return Encoded(_list(self._tokens[batch], place), mask if len(mask) else None)


def _batches(documents: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Groups of about BATCH_TOKENS tokens, at least one document in each."""
    waiting, tokens = [], 0
    for document in documents:
        waiting.append(document)
        tokens += len(document.tokens)
        if tokens >= BATCH_TOKENS:
            yield waiting
            waiting, tokens = [], 0
    if waiting:
        yield waiting


def _stored_mask(document: Encoded) -> np.ndarray:
    return np.zeros(0, np.uint8) if document.loss_mask is None else document.loss_mask


def _lists(arrays: list[np.ndarray], kind: Any) -> Any:
    pyarrow = _pyarrow()
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = pyarrow.array(np.concatenate(arrays), kind)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), values)


def _arrays(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and values of a column of lists, as views of the mapped file."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _list(column: tuple[np.ndarray, np.ndarray], place: int) -> np.ndarray:
    offsets, values = column
    return values[offsets[place] : offsets[place + 1]]


def _pyarrow() -> Any:
    with extra("train", "Keeping tokens on disk"):
        import pyarrow
        import pyarrow.ipc
    return pyarrow
