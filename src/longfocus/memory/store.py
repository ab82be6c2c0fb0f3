"""A memory that grows: what a conversation has pushed out of its window, for one memory layer.

Pairs are kept in blocks. A block is preallocated and doubled as it fills (never concatenated per token); a new one
begins only when rows stop sharing lines in the same way. Rows with the same history (beams, return sequences)
share one line, and reordering beams permutes row numbers, never pairs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part


@dataclass
class _Block:
    """Preallocated pairs `[lines, kv_heads, capacity, dim]`, of which the first `length` are there."""

    key: Tensor
    value: Tensor
    valid: Tensor | None
    rows: tuple[int, ...]
    length: int

    def part(self) -> Part:
        valid = None if self.valid is None else self.valid[:, : self.length]
        return Part(
            self.key[:, :, : self.length], self.value[:, :, : self.length], valid, self.rows
        )

    def append(self, key: Tensor, value: Tensor, valid: Tensor | None) -> None:
        stop = self.length + key.shape[2]
        if stop > self.key.shape[2]:
            self._grow(max(stop, 2 * self.key.shape[2]))
        new = slice(self.length, stop)
        self.key[:, :, new] = key
        self.value[:, :, new] = value
        if valid is not None and self.valid is None:
            self.valid = torch.ones(
                self.key.shape[0], self.key.shape[2], dtype=torch.bool, device=key.device
            )
        if self.valid is not None:
            self.valid[:, new] = True if valid is None else valid
        self.length = stop

    def _grow(self, capacity: int) -> None:
        def wider(old: Tensor, dim: int) -> Tensor:
            shape = list(old.shape)
            shape[dim] = capacity
            new = old.new_empty(shape)
            new.narrow(dim, 0, self.length).copy_(old.narrow(dim, 0, self.length))
            return new

        self.key, self.value = wider(self.key, 2), wider(self.value, 2)
        self.valid = None if self.valid is None else wider(self.valid, 1)


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
            self._blocks.append(_Block(key, value, valid, tuple(range(key.shape[0])), key.shape[2]))
            return
        rows = tuple(range(key.shape[0])) if lines is None else lines
        first = [rows.index(line) for line in sorted(set(rows))]
        if len(first) < len(rows):
            key, value, valid = key[first], value[first], None if valid is None else valid[first]
        last = self._blocks[-1] if self._blocks else None
        is_alike = last is not None and last.rows == rows and last.key.shape[0] == len(first)
        if last is None or not is_alike or last.key.requires_grad or last.value.requires_grad:
            last = _Block(key.new_empty(0), value.new_empty(0), None, rows, 0)
            last.key, last.value = (
                t.new_empty((*t.shape[:2], 0, t.shape[3])) for t in (key, value)
            )
            self._blocks.append(last)
        last.append(key.detach(), value.detach(), valid)

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
            self._blocks[-1].length = length
        self._undo = None

    def truncate(self, length: int) -> None:
        """Keep the first `length` pairs of every row; only for a store in one block."""
        for block in self._blocks:
            block.length = min(block.length, length)

    def select(self, rows: list[int]) -> None:
        """Batch row b becomes what row `rows[b]` was (beam search, repeats, a smaller batch). Copies no pairs."""
        for place, block in enumerate(self._blocks):
            self._blocks[place] = replace(block, rows=tuple(block.rows[row] for row in rows))
        self._undo = None

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
