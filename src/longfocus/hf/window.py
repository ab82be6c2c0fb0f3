"""The window of one layer, and behind the window of a memory layer its memory, as transformers cache layers."""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from longfocus.hf.rotary import Rotary
from longfocus.memory import Part, Store

Pairs = tuple[Tensor | None, ...]


class WindowLayer(DynamicLayer):
    """Keys and values of the window of one layer, un-rotated in memory layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 0
        self._evicted: Pairs | None = None

    @property
    def local(self) -> int:
        """Tokens in the window."""
        return 0 if self.keys is None or self.keys.dim() < 4 else self.keys.shape[2]

    def get_seq_length(self) -> int:
        return self.start + self.local

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.local + query_length, 0

    def pairs(self) -> Pairs:
        """Tensors of the window `[batch, kv_heads, tokens, head_dim]`, None while it is empty."""
        return self.keys, self.values

    def _put(self, pairs: Pairs) -> None:
        self.keys, self.values = pairs
        self.is_initialized = self.keys is not None
        if self.keys is not None:
            self.dtype, self.device = self.keys.dtype, self.keys.device

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.local:
            self._put(tuple(None if t is None else change(t) for t in self.pairs()))

    def evict(
        self, tokens: int, valid: Tensor | None, can_undo: bool, lines: tuple[int, ...] | None
    ) -> None:
        """Empty the window of `tokens` tokens; layers behind the last memory layer may never have seen them."""
        del valid, lines
        self._evicted = self.pairs() if can_undo else None
        self.start += tokens
        self.clear()

    def fork(self) -> "WindowLayer":
        """Another window with the same tokens. Tensors are never written to, so both may hold them."""
        made = copy(self)
        made._evicted = None
        return made

    def undo_evict(self, tokens: int) -> None:
        assert self._evicted is not None, "the eviction to undo was not kept"
        self.start -= tokens
        self._put(self._evicted)
        self._evicted = None

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            self.keep(self.local - abs(tokens_to_remove))

    def select(self, rows: Tensor) -> None:
        self._change(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
        self._evicted = None

    def restore(self, start: int, pairs: Pairs, stored: Sequence[Part]) -> None:
        """Take a state that was saved; `stored` are the blocks of a memory layer's own memory."""
        if any(pair is not None and pair.dim() != 4 for pair in pairs):
            raise ValueError("keys and values have four dimensions")
        self.start = start
        self._put(pairs)

    def check(self, valid: Tensor | None) -> None:
        """Raise LongFocusError if the window could not be evicted."""

    def keep(self, tokens: int) -> None:
        """Cut the window back to its first `tokens` tokens."""
        if tokens == 0:
            self.clear()
        else:
            self._change(lambda tensor: tensor[:, :, :tokens])

    def clear(self) -> None:
        self._put((None,) * len(self.pairs()))

    def reset(self) -> None:
        self.start = 0
        self._evicted = None
        self.clear()


class MemoryLayer(WindowLayer):
    """The window of a memory layer, un-rotated and rotated, and the memory behind it."""

    def __init__(
        self,
        rotary: Rotary,
        positions: str,
        documents: Sequence[Part] = (),
        store: Store | None = None,
    ) -> None:
        super().__init__()
        self.rotary, self.positions, self.documents = rotary, positions, documents
        self.store = Store() if store is None else store
        # the rotated twin of the window's keys: rotating the whole window at every token would be waste
        self.rotated: Tensor | None = None

    def push_rotated(self, key: Tensor) -> Tensor:
        """Add the rotated keys of new tokens; returns those of the whole window."""
        self.rotated = key if self.rotated is None else torch.cat([self.rotated, key], dim=2)
        return self.rotated

    def parts(self) -> list[Part]:
        """All that the layer can look into: documents first, then what the conversation has evicted."""
        return [*self.documents, *self.store.parts()]

    def evict(
        self, tokens: int, valid: Tensor | None, can_undo: bool, lines: tuple[int, ...] | None
    ) -> None:
        if self.local:
            self.store.append(*self.pairs_to_remember(), valid, lines)
        super().evict(tokens, valid, can_undo, lines)

    def check(self, valid: Tensor | None) -> None:
        if self.local:
            self.store.check(*self.pairs_to_remember(), valid)

    def pairs_to_remember(self) -> tuple[Tensor, Tensor]:
        """Keys (as the memory will see them) and values of the window."""
        assert self.keys is not None
        assert self.values is not None
        if self.positions == "true" and self.rotated is not None:
            return self.rotated, self.values
        if self.positions == "window_start":
            return self.rotary.at_first_position(self.keys), self.values
        return self.keys, self.values

    def fork(self) -> "MemoryLayer":
        made = copy(self)
        made._evicted = None
        made.store = self.store.fork()
        return made

    def restore(self, start: int, pairs: Pairs, stored: Sequence[Part]) -> None:
        super().restore(start, pairs, stored)
        for part in stored:
            self.store.adopt(part.key, part.value, part.scales)

    def undo_evict(self, tokens: int) -> None:
        super().undo_evict(tokens)
        self.store.undo_append()

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.store.select(rows.tolist())

    def reset(self) -> None:
        super().reset()
        self.store = self.store.empty()

    def pairs(self) -> Pairs:
        return self.keys, self.values, self.rotated

    def _put(self, pairs: Pairs) -> None:
        super()._put(pairs[:2])
        self.rotated = pairs[2]
