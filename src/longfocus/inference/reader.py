"""Reading: a text streamed window by window through the model, so that its pairs become one document memory.

Only the layers up to the last memory layer are run, and no logits are made. With one memory layer its keys do not
depend on the memory, so that windows are independent and are read many at a time. What is finished stays finished: a
reading that was interrupted goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.checks import check_tokens
from longfocus.hf.layers import evaluating
from longfocus.hf.model import FocusMixin
from longfocus.hf.window import MemoryLayer
from longfocus.inference.source import Source, Tokens, name_of, tokenize
from longfocus.memory.document import DocumentMemory, document_part

# Tokens of independent windows read at a time: more leave the caches (benchmarks/reading.py).
BATCH_TOKENS = 2048

Progress = Callable[[int, bool], None]
"""Told the tokens read so far and whether that was all."""


def read_document(
    model: FocusMixin,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Source,
    name: str | None = None,
    *,
    window_prefix: Sequence[int] = (),
    progress: Progress | None = None,
) -> DocumentMemory:
    """Read one source in isolation: it sees no other document and no conversation.

    `source` is a text, a Path, an iterable of texts, or token ids `[tokens]`. `window_prefix` are token ids
    (a BOS, say) that begin every window and are not remembered. Raises LongFocusError for an empty or
    unreadable source.
    """
    return Reading(model, tokenizer, source, name, window_prefix).run(progress)


class Reading:
    """One source on its way into memory; `run` may be interrupted and called again."""

    def __init__(
        self,
        model: FocusMixin,
        tokenizer: PreTrainedTokenizerBase | None,
        source: Source,
        name: str | None = None,
        window_prefix: Sequence[int] = (),
        search: Mapping[str, Any] | None = None,
    ) -> None:
        attachment = getattr(model, "focus", None)
        config = None if attachment is None else attachment.config
        if config is None or not config.memory_layers or config.positions == "true":
            raise LongFocusError(
                "Reading needs a model with memory layers, and positions other than 'true'. Got "
                f"{type(model).__name__} with {config or 'no memory attached'}. See longfocus.attach."
            )
        if len(window_prefix) >= config.window:
            raise LongFocusError(
                f"window_prefix of {len(window_prefix)} tokens fills the window of {config.window}."
            )
        self.model, self.source, self.tokenizer, self.name = (
            model,
            source,
            tokenizer,
            name or name_of(source),
        )
        self.prefix = torch.tensor(list(window_prefix), dtype=torch.long)
        self.text_length = config.window - len(self.prefix)
        # all that is known of the progress: an interruption may come anywhere, and these change in one step each
        self.fetched: list[Tokens] = []
        self.done = 0
        self._pieces: Iterator[Tokens] | None = tokenize(source, tokenizer)
        self._is_exhausted = False
        self._search = dict(search or {})
        self._cache = FocusCache(model, **self._search)
        self._stores = {
            layer: self._layer(self._cache, layer).store for layer in config.memory_layers
        }

    def run(self, progress: Progress | None = None) -> DocumentMemory:
        """Read what is left, and return the document."""
        with evaluating(self.model):
            for windows in self._windows():
                self._read(windows)
                if progress is not None:
                    progress(self.done, False)
        if progress is not None:
            progress(self.done, True)
        return self._document()

    def _windows(self) -> Iterator[Tensor]:
        """Windows of text `[rows, tokens]`, as many at a time as may be read together; the last may be short."""
        together = 1 if len(self._stores) > 1 else max(1, BATCH_TOKENS // self.text_length)
        most = together * self.text_length
        while True:
            while not self._is_exhausted and self._fetched() - self.done < most:
                self._fetch()
            waiting = self._waiting(most)
            whole = len(waiting) // self.text_length
            if whole:
                yield waiting[: whole * self.text_length].view(whole, -1)
            elif len(waiting):
                yield waiting[None]
            else:
                return

    def _fetched(self) -> int:
        return sum(len(piece.input_ids) for piece in self.fetched)

    def _waiting(self, most: int) -> Tensor:
        """The first token ids, at most so many, that are fetched and not yet read."""
        ids, start = [torch.empty(0, dtype=torch.long)], 0
        for piece in self.fetched:
            first = max(self.done - start, 0)
            ids.append(piece.input_ids[first : first + most])
            most -= len(ids[-1])
            start += len(piece.input_ids)
        return torch.cat(ids)

    def _fetch(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            # the tokenizer itself was interrupted: begin again, behind what is there
            if isinstance(self.source, Iterator):
                raise LongFocusError(
                    f"The reading of {self.name!r} was interrupted while its iterator was running, which cannot be "
                    "continued. Read it again from a new iterator."
                )
            pieces = islice(tokenize(self.source, self.tokenizer), len(self.fetched), None)
        piece = next(pieces, None)
        if piece is None:
            self._is_exhausted = True
        else:
            self.fetched.append(piece)
        self._pieces = pieces

    def _read(self, windows: Tensor) -> None:
        for store in self._stores.values():
            # an interruption may have come between two layers
            store.truncate(self.done)
        rows = windows.shape[0]
        cache = self._cache if rows == 1 else FocusCache(self.model, **self._search)
        cache.clear_window()
        prefixed = torch.cat([self.prefix.expand(rows, -1), windows], 1)
        check_tokens(self.model, prefixed, None)
        self.model.read_window(cache, prefixed.to(self.model.device))
        for layer, store in self._stores.items():
            pairs = self._layer(cache, layer).pairs_to_remember()
            key, value = (_side_by_side(found[:, :, len(self.prefix) :]) for found in pairs)
            store.append(key, value)
        cache.clear_window()
        self.done += windows.numel()

    @staticmethod
    def _layer(cache: FocusCache, layer: int) -> MemoryLayer:
        found = cache.windows[layer]
        assert isinstance(found, MemoryLayer)
        return found

    def _document(self) -> DocumentMemory:
        layers = {}
        for layer, store in self._stores.items():
            (part,) = store.parts()
            layers[layer] = document_part(part.key, part.value)
        offsets = [piece.offsets for piece in self.fetched]
        has_offsets = all(o is not None for o in offsets)
        text = "".join(piece.text for piece in self.fetched)
        return DocumentMemory(
            name=self.name,
            layers=layers,
            token_ids=torch.cat([piece.input_ids for piece in self.fetched]),
            positions=self.model.focus.config.positions,
            text=text or None,
            offsets=torch.cat([o for o in offsets if o is not None])
            if has_offsets and text
            else None,
        )


def _side_by_side(pairs: Tensor) -> Tensor:
    """Windows one after the other: (rows, heads, tokens, dim) -> (1, heads, rows * tokens, dim)."""
    return pairs.transpose(0, 1).flatten(1, 2)[None]
