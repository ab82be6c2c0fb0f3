"""A memory that grows: what a conversation has pushed out of its window, for one memory layer.

Pairs are kept in blocks. The room of a block is preallocated and doubled as it fills (never concatenated per token); a
new one begins when rows stop sharing lines in the same way. Rows with the same history (beams, return sequences) share
one line, and reordering beams permutes row numbers, never pairs. A fork shares all rooms: whoever comes first writes on
behind what is shared, the others begin rooms of their own.

For clustered search what has grown long is sorted (sorting.py): parts that never change, before the blocks. A part is
merged into the one before it when it has reached a quarter of its length, so that there are few, and each pair is moved
few times.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.blocks import Block, Room, side_by_side
from longfocus.memory.quantized import Scales
from longfocus.memory.sorting import cluster, room
from longfocus.memory.tiers import Allocate, in_memory
from longfocus.memory.trusted import are_finite

SORTED_FROM = 16_384
"""Pairs that are not worth sorting."""
TAIL = 4096
"""Pairs behind sorted ones that are sorted in their turn: until then every query attends to all of them."""
MERGED_FROM = 4
"""A sorted part is merged into one that is not more than so many times as long."""


class Store:
    """An append-only memory of (key, value) pairs for a batch of rows.

    `dtype` is that of the pairs, None for what is appended; int8 pairs get a scale each. `is_clustered` sorts what has
    grown long. `allocate` gives the room (tiers.py).
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        *,
        is_clustered: bool = False,
        allocate: Allocate = in_memory,
    ) -> None:
        self.dtype = dtype
        self.is_clustered = is_clustered
        self.allocate = allocate
        self._sorted: list[Part] = []
        self._blocks: list[Block] = []
        self._undo: tuple[int, int] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._sorted)) + self._unsorted

    def parts(self) -> list[Part]:
        return [*self._sorted, *(block.part() for block in self._blocks)]

    @property
    def _unsorted(self) -> int:
        return sum(block.length for block in self._blocks)

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
        if self.is_clustered:
            self._sort()
        self._undo = (len(self._blocks), self._blocks[-1].length if self._blocks else 0)
        valid = None if valid is None else valid.to(key.device)
        if valid is not None and valid.all():
            valid = None
        key, value = (finite(self.numbers(t), valid) for t in (key, value))
        if key.requires_grad or value.requires_grad:
            given = Room(key, value, valid, used=key.shape[2])
            self._blocks.append(Block(given, tuple(range(key.shape[0])), key.shape[2]))
            return
        rows = tuple(range(key.shape[0])) if lines is None else lines
        first = [rows.index(line) for line in sorted(set(rows))]
        if len(first) < len(rows):
            key, value, valid = key[first], value[first], None if valid is None else valid[first]
        if not self._goes_on(rows, len(first), key.shape[2]):
            self._blocks.append(Block(self._new_room(key, value), rows, 0))
        last = self._blocks[-1]
        last.room.write(last.length, key.detach(), value.detach(), valid)
        self._blocks[-1] = replace(last, length=last.room.used)

    def _sort(self) -> None:
        """Sort the blocks if they have grown long."""
        enough = min(TAIL, SORTED_FROM) if self._sorted else SORTED_FROM
        if self._unsorted < enough or any(block.requires_grad for block in self._blocks):
            return
        tail = side_by_side([block.part() for block in self._blocks])
        made = cluster(tail, allocate=self.allocate)
        parts = list(self._sorted)
        while parts and _belong_together(parts[-1], made):
            made = cluster([parts.pop(), made], allocate=self.allocate)
        self._sorted, self._blocks = [*parts, made], []

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

    def _new_room(self, key: Tensor, value: Tensor) -> Room:
        # where rooms cannot grow they double, so that there are few
        is_shared = bool(self._blocks) and self._blocks[-1].room.pinned > 0
        capacity = max(key.shape[2], len(self)) if is_shared else 0
        shape, dtype = (*key.shape[:2], capacity, key.shape[3]), self.dtype or key.dtype
        keys, values, scales = room(shape, dtype, key.device, self.allocate)
        return Room(keys, values, scales=scales, allocate=self.allocate)

    def numbers(self, given: Tensor) -> Tensor:
        """What is appended in the type of the pairs; int8 is made of it where it is written."""
        return given if self.dtype in (None, torch.int8) else given.to(self.dtype)

    def check(self, key: Tensor, value: Tensor, valid: Tensor | None) -> None:
        """Raise what `append` would raise."""
        for pairs in (key, value):
            finite(self.numbers(pairs), valid)

    def undo_append(self) -> None:
        """Take back the latest `append`."""
        assert self._undo is not None, "there is nothing to undo"
        blocks, length = self._undo
        del self._blocks[max(blocks, 1) if length else 0 :]
        if self._blocks:
            self._blocks[-1] = self._blocks[-1].cut(length)
        self._undo = None

    def truncate(self, length: int) -> None:
        """Keep the first `length` pairs of every row; only for a store in one block, behind what is sorted."""
        length -= sum(map(len, self._sorted))
        if length < 0:
            raise ValueError("what is sorted cannot be cut")
        self._blocks = [block.cut(min(block.length, length)) for block in self._blocks]

    def select(self, rows: list[int]) -> None:
        """Batch row b becomes what row `rows[b]` was (beam search, repeats, a smaller batch). Copies no pairs."""
        for place, block in enumerate(self._blocks):
            self._blocks[place] = replace(block, rows=tuple(block.rows[row] for row in rows))
        for place, part in enumerate(self._sorted):
            own = tuple(part.line_of(row) for row in rows)
            self._sorted[place] = replace(part, rows=own)
        self._undo = None

    def empty(self) -> "Store":
        """Another store of the same kind with nothing in it."""
        return Store(self.dtype, is_clustered=self.is_clustered, allocate=self.allocate)

    def fork(self) -> "Store":
        """Another store with the same pairs, which are shared; either may grow or be cut without the other."""
        for block in self._blocks:
            block.room.pinned = max(block.room.pinned, block.length)
        made = self.empty()
        made._sorted = list(self._sorted)
        made._blocks = list(self._blocks)
        return made

    def adopt(self, key: Tensor, value: Tensor, scales: Scales | None = None) -> None:
        """Take pairs of a batch of one row as they lie, such as in a file; they are never written to."""
        length = key.shape[2]
        given = Room(key, value, scales=scales, used=length, pinned=length)
        self._blocks.append(Block(given, (0,), length))

    def adopt_sorted(self, part: Part) -> None:
        """Take sorted pairs of a batch of one row."""
        self._sorted.append(replace(part, rows=(0,)))

    def adopt_copy(self, part: Part) -> None:
        """Take a copy of pairs of a batch of one row, which has just the room that they need."""
        key, value, scales = room(
            tuple(part.key.shape), part.key.dtype, part.key.device, self.allocate
        )
        key.copy_(part.key)
        value.copy_(part.value)
        if scales is not None and part.scales is not None:
            scales.key.copy_(part.scales.key)
            scales.value.copy_(part.scales.value)
        self.adopt(key, value, scales)

    def nbytes(self) -> int:
        """Bytes of the pairs held, without preallocated room."""
        return sum(p.nbytes for p in self.parts())


def _belong_together(before: Part, last: Part) -> bool:
    """Whether a sorted part should be merged into the one before it."""
    same_rows = before.rows == last.rows and before.key.shape[0] == last.key.shape[0]
    return same_rows and len(before) <= MERGED_FROM * len(last)


def finite(pairs: Tensor, valid: Tensor | None) -> Tensor:
    """The pairs with padding set to zero (0 times NaN would be NaN); refuses real ones that are not finite."""
    if valid is not None:
        pairs = pairs.masked_fill(~valid.to(pairs.device)[:, None, :, None], 0.0)
    if not are_finite(pairs):
        raise LongFocusError(
            "The model produced keys or values that are NaN or infinite, so they cannot enter the memory: one of them "
            "would spoil every later answer. Check the weights and the number type (float16 overflows; try bfloat16)."
        )
    return pairs
