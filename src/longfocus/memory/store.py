"""A memory that grows: what a conversation has pushed out of its window, for one memory layer.

Pairs are kept in blocks. The room of a block is preallocated and doubled as it fills (never concatenated per token); a
new one begins when rows stop sharing lines in the same way. Rows with the same history (beams, return sequences) share
one line, and reordering beams permutes row numbers, never pairs. A fork shares all rooms: whoever comes first writes on
behind what is shared, the others begin rooms of their own.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part


@dataclass
class _Room:
    """Preallocated pairs `[lines, kv_heads, capacity, dim]`, shared by blocks of forked stores."""

    key: Tensor
    value: Tensor
    valid: Tensor | None = None
    used: int = 0
    """Pairs written so far; behind them is free room."""
    pinned: int = 0
    """Pairs that a fork may still see: they are never written over."""

    @property
    def capacity(self) -> int:
        return self.key.shape[2]

    def write(self, start: int, key: Tensor, value: Tensor, valid: Tensor | None) -> None:
        stop = start + key.shape[2]
        if stop > self.capacity:
            self._grow(max(stop, 2 * self.capacity))
        self.key[:, :, start:stop] = key
        self.value[:, :, start:stop] = value
        if valid is not None and self.valid is None:
            self.valid = torch.ones(
                self.key.shape[0], self.capacity, dtype=torch.bool, device=key.device
            )
        if self.valid is not None:
            self.valid[:, start:stop] = True if valid is None else valid
        self.used = stop

    def _grow(self, capacity: int) -> None:
        def wider(old: Tensor, dim: int) -> Tensor:
            shape = list(old.shape)
            shape[dim] = capacity
            new = old.new_empty(shape)
            new.narrow(dim, 0, self.used).copy_(old.narrow(dim, 0, self.used))
            return new

        self.key, self.value = wider(self.key, 2), wider(self.value, 2)
        self.valid = None if self.valid is None else wider(self.valid, 1)


@dataclass(frozen=True)
class _Block:
    """The first `length` pairs of a room, as the batch rows `rows` see its lines."""

    room: _Room
    rows: tuple[int, ...]
    length: int

    def part(self) -> Part:
        valid = None if self.room.valid is None else self.room.valid[:, : self.length]
        key, value = (pairs[:, :, : self.length] for pairs in (self.room.key, self.room.value))
        return Part(key, value, valid, self.rows)

    def has_room(self, pairs: int) -> bool:
        """Whether so many pairs can be written behind this block without copying what others share."""
        return self._is_last and (not self.room.pinned or self.length + pairs <= self.room.capacity)

    def cut(self, length: int) -> "_Block":
        if self._is_last:
            self.room.used = max(length, self.room.pinned)
        return replace(self, length=length)

    @property
    def _is_last(self) -> bool:
        """Whether nobody else has written behind it; an interrupted write may have left something there."""
        return not self.room.pinned or self.length == self.room.used

    @property
    def requires_grad(self) -> bool:
        return self.room.key.requires_grad or self.room.value.requires_grad


class Store:
    """An append-only memory of (key, value) pairs for a batch of rows."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self._blocks: list[_Block] = []
        self._undo: tuple[int, int] | None = None

    def __len__(self) -> int:
        return sum(block.length for block in self._blocks)

    def parts(self) -> list[Part]:
        return [block.part() for block in self._blocks]

    def append(
        self,
        key: Float[Tensor, "batch kv_heads pairs dim"],
        value: Float[Tensor, "batch kv_heads pairs dim"],
        valid: Bool[Tensor, "batch pairs"] | None = None,
        lines: tuple[int, ...] | None = None,
    ) -> None:
        """Add pairs of every row; `valid` marks the real ones. Raises LongFocusError on NaN or infinite pairs.

        Rows with equal numbers in `lines` (0, 1, ...; neighbours) have the same history, and share the pairs of the
        first of them. Pairs that carry a gradient keep it (the published semantics), in a block of their own.
        """
        self._undo = (len(self._blocks), self._blocks[-1].length if self._blocks else 0)
        valid = None if valid is None else valid.to(key.device)
        if valid is not None and valid.all():
            valid = None
        key, value = (finite(t.to(self.dtype or t.dtype), valid) for t in (key, value))
        if key.requires_grad or value.requires_grad:
            room = _Room(key, value, valid, used=key.shape[2])
            self._blocks.append(_Block(room, tuple(range(key.shape[0])), key.shape[2]))
            return
        rows = tuple(range(key.shape[0])) if lines is None else lines
        first = [rows.index(line) for line in sorted(set(rows))]
        if len(first) < len(rows):
            key, value, valid = key[first], value[first], None if valid is None else valid[first]
        if not self._goes_on(rows, len(first), key.shape[2]):
            self._blocks.append(_Block(self._new_room(key, value), rows, 0))
        last = self._blocks[-1]
        last.room.write(last.length, key.detach(), value.detach(), valid)
        self._blocks[-1] = replace(last, length=last.room.used)

    def _goes_on(self, rows: tuple[int, ...], lines: int, pairs: int) -> bool:
        """Whether new pairs belong behind those of the last block."""
        last = self._blocks[-1] if self._blocks else None
        return (
            last is not None
            and last.rows == rows
            and last.room.key.shape[0] == lines
            and not last.requires_grad
            and last.has_room(pairs)
        )

    def _new_room(self, key: Tensor, value: Tensor) -> _Room:
        # where rooms cannot grow they double, so that there are few
        is_shared = bool(self._blocks) and self._blocks[-1].room.pinned > 0
        capacity = max(key.shape[2], len(self)) if is_shared else 0
        keys, values = (t.new_empty((*t.shape[:2], capacity, t.shape[3])) for t in (key, value))
        return _Room(keys, values)

    def check(self, key: Tensor, value: Tensor, valid: Tensor | None) -> None:
        """Raise what `append` would raise."""
        for pairs in (key, value):
            finite(pairs.to(self.dtype or pairs.dtype), valid)

    def undo_append(self) -> None:
        """Take back the latest `append`."""
        assert self._undo is not None, "there is nothing to undo"
        blocks, length = self._undo
        del self._blocks[max(blocks, 1) if length else 0 :]
        if self._blocks:
            self._blocks[-1] = self._blocks[-1].cut(length)
        self._undo = None

    def truncate(self, length: int) -> None:
        """Keep the first `length` pairs of every row; only for a store in one block."""
        self._blocks = [block.cut(min(block.length, length)) for block in self._blocks]

    def select(self, rows: list[int]) -> None:
        """Batch row b becomes what row `rows[b]` was (beam search, repeats, a smaller batch). Copies no pairs."""
        for place, block in enumerate(self._blocks):
            self._blocks[place] = replace(block, rows=tuple(block.rows[row] for row in rows))
        self._undo = None

    def fork(self) -> "Store":
        """Another store with the same pairs, which are shared; either may grow or be cut without the other."""
        for block in self._blocks:
            block.room.pinned = max(block.room.pinned, block.length)
        made = Store(self.dtype)
        made._blocks = list(self._blocks)
        return made

    def adopt(self, key: Tensor, value: Tensor) -> None:
        """Take pairs of a batch of one row as they lie, such as in a file; they are never written to."""
        length = key.shape[2]
        room = _Room(key, value, used=length, pinned=length)
        self._blocks.append(_Block(room, (0,), length))

    def nbytes(self) -> int:
        """Bytes of the pairs held, without preallocated room."""
        return sum(p.key.nbytes + p.value.nbytes for p in self.parts())


def finite(pairs: Tensor, valid: Tensor | None) -> Tensor:
    """The pairs with padding set to zero (0 times NaN would be NaN); refuses real ones that are not finite."""
    if valid is not None:
        pairs = pairs.masked_fill(~valid.to(pairs.device)[:, None, :, None], 0.0)
    if not pairs.isfinite().all():
        raise LongFocusError(
            "The model produced keys or values that are NaN or infinite, so they cannot enter the memory: one of them "
            "would spoil every later answer. Check the weights and the number type (float16 overflows; try bfloat16)."
        )
    return pairs
