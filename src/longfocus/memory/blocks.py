"""Blocks of a growing memory: preallocated room, and how much of it is whose."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from longfocus.memory.base import Part
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import room
from longfocus.memory.tiers import Allocate, in_memory
from longfocus.memory.writes import Writes


@dataclass
class Room:
    """Preallocated pairs `[lines, kv_heads, capacity, dim]`, shared by blocks of forked stores."""

    key: Tensor
    value: Tensor
    valid: Tensor | None = None
    scales: Scales | None = None
    """Of int8 pairs."""
    allocate: Allocate = in_memory
    used: int = 0
    """Pairs written so far; behind them is free room."""
    pinned: int = 0
    """Pairs that a fork may still see: they are never written over."""
    writes: Writes = field(default_factory=Writes)

    @property
    def capacity(self) -> int:
        return self.key.shape[2]

    def write(self, start: int, key: Tensor, value: Tensor, valid: Tensor | None) -> None:
        stop = start + key.shape[2]
        self.writes.note(start, stop)
        if stop > self.capacity:
            self._grow(max(stop, 2 * self.capacity))
        if self.scales is None:
            self.key[:, :, start:stop] = key
            self.value[:, :, start:stop] = value
        else:
            for pairs, scale, given in zip(
                (self.key, self.value), self.scales, (key, value), strict=True
            ):
                pairs[:, :, start:stop], scale[:, :, start:stop] = quantize(given)
        if valid is not None and self.valid is None:
            self.valid = torch.ones(
                self.key.shape[0], self.capacity, dtype=torch.bool, device=key.device
            )
        if self.valid is not None:
            self.valid[:, start:stop] = True if valid is None else valid
        self.used = stop

    def _grow(self, capacity: int) -> None:
        old, here = self, slice(0, self.used)
        lines, kv_heads, _, dim = old.key.shape
        shape = (lines, kv_heads, capacity, dim)
        key, value, scales = room(shape, old.key.dtype, old.key.device, self.allocate)
        key[:, :, here], value[:, :, here] = old.key[:, :, here], old.value[:, :, here]
        if scales is not None and old.scales is not None:
            for new, known in zip(scales, old.scales, strict=True):
                new[:, :, here] = known[:, :, here]
        valid = None
        if old.valid is not None:
            valid = old.valid.new_empty(lines, capacity)
            valid[:, here] = old.valid[:, here]
        self.key, self.value, self.scales, self.valid = key, value, scales, valid


@dataclass(frozen=True)
class Block:
    """The first `length` pairs of a room, as the batch rows `rows` see its lines."""

    room: Room
    rows: tuple[int, ...]
    length: int

    def part(self) -> Part:
        valid = None if self.room.valid is None else self.room.valid[:, : self.length]
        key, value = (pairs[:, :, : self.length] for pairs in (self.room.key, self.room.value))
        scales = None
        if self.room.scales is not None:
            scales = Scales(*(scale[:, :, : self.length] for scale in self.room.scales))
        return Part(key, value, valid, self.rows, scales, writes=self.room.writes)

    def has_room(self, pairs: int) -> bool:
        """Whether so many pairs can be written behind this block without copying what others share."""
        return self._is_last and (not self.room.pinned or self.length + pairs <= self.room.capacity)

    def cut(self, length: int) -> "Block":
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


def side_by_side(parts: Sequence[Part]) -> Part:
    """Parts of the same rows as one, whose lines are all that the rows tell apart."""
    if len(parts) == 1:
        return parts[0]
    seen = list(zip(*(part.rows or () for part in parts), strict=True))
    lines = sorted(set(seen))
    own = [list(numbers) for numbers in zip(*lines, strict=True)]

    def joined(tensors: Sequence[Tensor], dim: int = 2) -> Tensor:
        return torch.cat([t[numbers] for t, numbers in zip(tensors, own, strict=True)], dim)

    valid = None
    if any(part.valid is not None for part in parts):
        real = [
            part.key.new_ones(part.key.shape[0], len(part), dtype=torch.bool)
            if part.valid is None
            else part.valid
            for part in parts
        ]
        valid = joined(real, 1)
    scales = [part.scales for part in parts if part.scales is not None]
    return Part(
        joined([part.key for part in parts]),
        joined([part.value for part in parts]),
        valid,
        tuple(lines.index(row) for row in seen),
        Scales(joined([s.key for s in scales]), joined([s.value for s in scales]))
        if scales
        else None,
    )
