"""Reading: a text streamed window by window through the model, so that its pairs become one document memory.

Only the layers up to the last memory layer are run, and no logits are made. Windows are read many at a time, side by
side: a memory layer has the keys of all of them before it looks into any. What is finished stays finished: a reading
that was interrupted goes on where it stopped.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.hf.checks import check_tokens
from longfocus.hf.fingerprint import model_fingerprint, tokenizer_fingerprint
from longfocus.hf.layers import evaluating
from longfocus.hf.model import FocusMixin
from longfocus.hf.reading import ReadingCache, ReadingLayer
from longfocus.inference.given import prefix_of
from longfocus.inference.journal import Journal, Pairs
from longfocus.inference.source import (
    Source,
    Tokens,
    is_token_ids,
    name_of,
    open_source,
    tokenize,
)
from longfocus.inference.texts.folder_text import TogetherText
from longfocus.inference.texts.source_text import SourceText
from longfocus.memory import Part, Store
from longfocus.memory import store as growing
from longfocus.memory.description import ReadWith, check_words, seen_of_earlier_windows
from longfocus.memory.document import DocumentMemory
from longfocus.memory.sorting import cluster

# Tokens of windows read at a time: more leave the caches (benchmarks/reading.py).
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
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> DocumentMemory:
    """Read one source in isolation: it sees no other document and no conversation.

    `source` is a text, a Path (a file, or a folder as one document), an iterable of texts, or token ids `[tokens]`.
    `window_prefix` are token ids (a BOS, say) that begin every window and are not remembered. `metadata` are entries
    of the user's own, to select documents by. Raises LongFocusError for an empty or unreadable source.
    """
    return Reading(model, tokenizer, source, name, window_prefix, metadata=metadata).run(progress)


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
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        attachment = getattr(model, "focus", None)
        config = None if attachment is None else attachment.config
        if config is None or not config.memory_layers or config.positions == "true":
            raise LongFocusError(
                "Reading needs a model with memory layers, and positions other than 'true'. Got "
                f"{type(model).__name__} with {config or 'no memory attached'}. See longfocus.attach."
            )
        # what could not be written in the end is refused before it is read
        check_words("" if name is None else name, {} if metadata is None else metadata)
        window_prefix = prefix_of(window_prefix)
        if len(window_prefix) >= config.window:
            raise LongFocusError(
                f"window_prefix of {len(window_prefix)} tokens fills the window of {config.window}."
            )
        self.model, self.tokenizer = model, tokenizer
        self.source = source if is_token_ids(source) else open_source(source)
        self._is_iterator = isinstance(source, Iterator)
        self.name = name or name_of(self.source)
        self.metadata = dict(metadata or {})
        self.prefix = torch.tensor(window_prefix, dtype=torch.long)
        self.text_length = config.window - len(self.prefix)
        # all that is known of the progress: an interruption may come anywhere, and these change in one step each
        self.fetched: list[Tokens] = []
        self.done = 0
        self._pieces: Iterator[Tokens] | None = tokenize(self.source, tokenizer)
        self._is_exhausted = False
        self._cache = ReadingCache(model, len(self.prefix), **(search or {}))
        own = self._cache.config
        dtype = None if own.memory_dtype is None else getattr(torch, own.memory_dtype)
        # with one memory layer nobody looks into what is read before all of it is
        sorts = own.search == "clustered" and len(config.memory_layers) > 1
        self._stores: dict[int, Store] = {}
        for layer in config.memory_layers:
            store = Store(dtype, is_clustered=sorts, allocate=self._cache.allocate)
            self._stores[layer] = self._layer(layer).store = store

    @property
    def layers(self) -> list[int]:
        """The memory layers."""
        return list(self._stores)

    @property
    def dtype(self) -> str:
        """Of the keys and values."""
        dtype = self._cache.config.memory_dtype
        return dtype or str(self.model.dtype).removeprefix("torch.")

    @property
    def read_with(self) -> ReadWith:
        """What makes the document usable for one model only."""
        config = self.model.focus.config
        return ReadWith(
            config.positions,
            config.window,
            tuple(self.prefix.tolist()),
            model_fingerprint(self.model),
            None if is_token_ids(self.source) else tokenizer_fingerprint(self.tokenizer),
            **(seen_of_earlier_windows(self._cache.config) if len(self._stores) > 1 else {}),
        )

    def will_be_sorted(self, tokens: int) -> bool:
        """Whether a document of so many tokens gets its pairs sorted by clusters."""
        return self._cache.config.search == "clustered" and tokens >= growing.SORTED_FROM

    def run(
        self, progress: Progress | None = None, journal: Journal | None = None
    ) -> DocumentMemory:
        """Read what is left, and return the document. What is in the journal is taken from there, and the rest put."""
        records = None if journal is None else journal.records()
        with evaluating(self.model):
            for windows in self._windows():
                of = sha256(windows.numpy().tobytes()).hexdigest()
                kept = None
                if journal is not None and records is not None:
                    kept = self._kept(of, journal, records)
                if kept is not None:
                    self._remember(kept)
                    continue
                pairs = self._read(windows)
                if journal is not None:
                    journal.append(pairs, of)
                self._remember(pairs)
                if progress is not None:
                    progress(self.done, False)
        if progress is not None:
            progress(self.done, True)
        return self._document()

    @staticmethod
    def _kept(of: str, journal: Journal, records: Generator[Pairs, None, None]) -> Pairs | None:
        """The next record, if it is of these tokens: the source may have changed since it was written."""
        pairs = next(records, None)
        if pairs is not None and journal.of != of:
            records.close()
            journal.forget_last()
            return None
        return pairs

    def _windows(self) -> Iterator[Tensor]:
        """Windows of text `[rows, tokens]`, as many at a time as are read together; the last may be short."""
        most = max(1, BATCH_TOKENS // self.text_length) * self.text_length
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
            if self._is_iterator:
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

    def _read(self, windows: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of some windows."""
        for store in self._stores.values():
            # an interruption may have come between two layers
            store.truncate(self.done)
        self._cache.clear_window()
        prefixed = torch.cat([self.prefix.expand(len(windows), -1), windows], 1)
        check_tokens(self.model, prefixed, None)
        self.model.read_window(self._cache, prefixed.to(self.model.device))
        pairs = {}
        for layer, store in self._stores.items():
            pairs[layer] = self._layer(layer).text_pairs()
            store.check(*pairs[layer], None)
        self._cache.clear_window()
        return pairs

    def _remember(self, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        for layer, (key, value) in pairs.items():
            self._stores[layer].append(key.to(self.model.device), value.to(self.model.device))
        self.done += next(iter(pairs.values()))[0].shape[2]

    def _layer(self, layer: int) -> ReadingLayer:
        found = self._cache.windows[layer]
        assert isinstance(found, ReadingLayer)
        return found

    def _pairs(self, layer: int) -> Part:
        """The pairs of a layer, without the room that was kept free behind them: that may be as large as they are.

        One layer at a time is copied, and its room given back. After an interruption either store will do.
        """
        store = self._stores[layer]
        parts, exact = store.parts(), store.empty()
        if self.will_be_sorted(self.done):
            exact.adopt_sorted(cluster(parts, allocate=store.allocate))
        elif parts[0].key.untyped_storage().nbytes() > parts[0].nbytes:
            exact.adopt_copy(parts[0])
        else:
            exact = store
        self._stores[layer] = self._layer(layer).store = exact
        (part,) = exact.parts()
        # every batch row sees the one line
        return replace(part, rows=None, writes=None)

    def _document(self) -> DocumentMemory:
        layers = {layer: self._pairs(layer) for layer in self._stores}
        offsets = [piece.offsets for piece in self.fetched]
        has_offsets = all(o is not None for o in offsets)
        text = "".join(piece.text for piece in self.fetched)
        opened = self.source if isinstance(self.source, SourceText) else None
        return DocumentMemory.of(
            name=self.name,
            layers=layers,
            token_ids=torch.cat([piece.input_ids for piece in self.fetched]),
            read_with=self.read_with,
            text=text or None,
            offsets=torch.cat([o for o in offsets if o is not None])
            if has_offsets and text
            else None,
            parts=() if opened is None else opened.parts(),
            metadata=self.metadata,
            is_together=isinstance(opened, TogetherText),
        )
