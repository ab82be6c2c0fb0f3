"""Rows for instruction and chat tuning: a conversation lies partly in its last window and partly before it.

    part 0   |.............|   no token: the conversation is short          . no token
    part 1   |ssssssuuuuu..|   what came before: others, and part 2, see it through memory layers
    part 2   |uuuAAAA......|   the last window; the loss is on answers A only

Where the last window begins is drawn anew for every conversation, so that a model learns to answer from its window and
from memory alike. What does not fit into all windows is cut off at the beginning.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.training.documents import Document, DocumentReader, Documents
from longfocus.training.rows import Batch

STATE_FORMAT = 1


class ConversationRows:
    """Batches in which every document gives `windows` consecutive entries; the face of `rows.Rows`.

    Entry `windows - 1` of a document is its last window, earlier entries are the windows before it, and those that are
    not needed hold no token. The split depends on seed and document number alone.
    """

    def __init__(
        self, documents: Documents, *, batch_size: int, length: int, windows: int, seed: int = 0
    ) -> None:
        if windows < 1 or length < 2 or batch_size < 1 or batch_size % windows:
            raise LongFocusError(
                f"batch_size={batch_size}, length={length}, windows={windows}: a conversation gives `windows` entries "
                "of a batch, each of at least 2 tokens. Give a batch_size that is a multiple of windows."
            )
        self.batch_size, self.length, self.windows, self.seed = batch_size, length, windows, seed
        self._reader = DocumentReader(documents)
        # documents of the batches given so far, set when one is complete
        self._read = 0

    def __iter__(self) -> Iterator[Batch]:
        if self._reader.read != self._read:
            # an error or Ctrl-C ended the last loop inside a batch: back to where that began
            self._reader.restore(self._read, set())
        while found := self._next_documents():
            batch = self._batch(found)
            self._read = self._reader.read
            yield batch
        if not self._read:
            raise LongFocusError(
                "There is no conversation to train on: the source is empty. Check its path and format; a generator "
                "can be read once only."
            )
        self._reader.restart()
        self._read = 0

    def _next_documents(self) -> list[tuple[int, Document]]:
        """Those of one batch with their numbers; fewer at the end."""
        found: list[tuple[int, Document]] = []
        while len(found) < self.batch_size // self.windows:
            number = self._reader.read
            if (document := self._reader.next()) is None:
                break
            found.append((number, document))
        return found

    def _batch(self, found: list[tuple[int, Document]]) -> Batch:
        shape = (self.batch_size // self.windows, self.windows, self.length)
        tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        masks, documents = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
        for row, (number, document) in enumerate(found):
            for part, start, stop in self._places(number, len(document.tokens) - 1):
                size = slice(0, stop - start)
                tokens[row, part, size] = document.tokens[start:stop]
                targets[row, part, size] = document.tokens[start + 1 : stop + 1]
                masks[row, part, size] = document.loss_mask[start + 1 : stop + 1]
                documents[row, part, size] = number
        flat = (self.batch_size, self.length)
        return {
            "input_tokens": tokens.reshape(flat),
            "target_tokens": targets.reshape(flat),
            "loss_masks": masks.reshape(flat),
            "documents": documents.reshape(flat),
            "metrics": {"documents": self._reader.read},
        }

    def _places(self, number: int, tokens: int) -> Iterator[tuple[int, int, int]]:
        """(part, first token, end) of every window that a document of so many input tokens fills."""
        first = max(0, tokens - self.windows * self.length)
        held = tokens - first
        if held < 1:
            return
        fewest = max(1, held - (self.windows - 1) * self.length)
        most = min(self.length, held)
        last = int(np.random.default_rng([self.seed, number]).integers(fewest, most + 1))
        border = tokens - last
        yield self.windows - 1, border, tokens
        starts = range(first, border, self.length)
        for back, start in enumerate(reversed(starts)):
            yield self.windows - 2 - back, start, min(start + self.length, border)

    def state_dict(self) -> dict[str, Any]:
        """Small and JSON-able: which document comes next."""
        return {"format": STATE_FORMAT, **self._settings(), "read": self._read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        wanted = {"format": STATE_FORMAT, **self._settings()}
        found = {name: state.get(name) for name in wanted}
        if found != wanted:
            raise LongFocusError(
                f"This state belongs to other conversation rows: {found}, not {wanted}. Resume with the settings that "
                "it was saved with."
            )
        self._reader.restore(state["read"], set())
        self._read = state["read"]

    def _settings(self) -> dict[str, int]:
        names = ("batch_size", "length", "windows", "seed")
        return {name: getattr(self, name) for name in names}
