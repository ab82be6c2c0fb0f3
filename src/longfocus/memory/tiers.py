"""Where pairs are kept: in RAM up to a budget, and beyond it in files that are mapped.

    rooms = Rooms(budget=2 * 2**30, folder="/var/tmp")
    rooms.allocate(shape, dtype, device)     a tensor, in RAM while the budget lasts

A tensor on a file is used like any other, and holds no memory of the process: the system keeps of it what is used and
writes back what is not. Files have no name, so nothing is left behind, whatever happens. On another device than the CPU
the device's own memory comes first, and the budget counts there.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from longfocus.core.runs import Runs
from longfocus.errors import LongFocusError

Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]
"""Room for a tensor of some shape, uninitialised."""
# Bytes between two runs that are loaded with them rather than told apart.
GAP_BYTES = 2**16


def in_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


class Rooms:
    """Room for the pairs of one session: at most `budget` bytes in RAM (None: no limit), the rest on files in `folder`.

    Raises LongFocusError for a budget or a folder that cannot be, and where the disk is full.
    """

    def __init__(self, budget: int | None = None, folder: str | Path | None = None) -> None:
        if budget is not None and (type(budget) is not int or budget < 0):
            raise LongFocusError(
                f"The budget of a memory is a number of bytes, 0 or more. Got {budget!r}. None sets no limit."
            )
        self.budget = budget
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        if budget is not None and not self.folder.is_dir():
            raise LongFocusError(
                f"There is no folder {self.folder} for what exceeds the budget of the memory. Make it, or give another."
            )
        self.in_ram = 0
        """Bytes that count against the budget now."""
        self.on_disk = 0
        """Bytes on files now."""

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor in RAM, or beyond the budget on a file."""
        size = prod(shape) * dtype.itemsize
        if self.budget is None or size == 0:
            return in_memory(shape, dtype, device)
        if self.in_ram + size > self.budget:
            return self._on_file(shape, dtype, size)
        if device.type != "cpu":
            made = in_memory(shape, dtype, device)
            self._count("in_ram", made.untyped_storage(), size)
            return made
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._count("in_ram", room, size)
        return torch.frombuffer(room, dtype=dtype).view(shape)

    def _on_file(self, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                # a file with holes would kill the process later, where the disk is full
                os.posix_fallocate(file.fileno(), 0, size)
                room = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise LongFocusError(
                f"{size:,} bytes of memory exceed the budget, and cannot be kept in {self.folder}: "
                f"{error.strerror or error}. Free some space, give another folder, or a larger budget."
            ) from error
        self._count("on_disk", room, size)
        made = torch.frombuffer(room, dtype=dtype).view(shape)
        _FILES[made.data_ptr()] = room
        return made

    def _count(self, name: str, room: object, size: int) -> None:
        setattr(self, name, getattr(self, name) + size)
        weakref.finalize(room, _take_back, weakref.ref(self), name, size)


def _take_back(rooms: "weakref.ref[Rooms]", name: str, size: int) -> None:
    held = rooms()
    if held is not None:
        setattr(held, name, getattr(held, name) - size)


_FILES: "weakref.WeakValueDictionary[int, mmap.mmap]" = weakref.WeakValueDictionary()
"""Maps by the address of their first byte."""


class SpilledPairs:
    """Sorted pairs `[lines, kv_heads, pairs, 2, dim]` on such a file, loaded as they are visited (a `PairsFile`)."""

    def __init__(self, room: mmap.mmap, pairs: Tensor) -> None:
        self.room, self.pairs = room, pairs

    @classmethod
    def of(cls, pairs: Tensor) -> "SpilledPairs | None":
        """None for pairs in RAM."""
        room = _FILES.get(pairs.data_ptr())
        return None if room is None else cls(room, pairs)

    def verify(self) -> None:
        """Nobody else can have written to it."""

    def verify_clusters(self) -> None:
        """They are in RAM."""

    def fetch(self, line: int, kv_head: int, runs: Runs) -> None:
        """There is nothing to verify."""
        self.announce(line, kv_head, runs)

    def announce(self, line: int, kv_head: int, runs: Runs) -> None:
        """Let the system load runs of pairs, all at once."""
        size = self.pairs.element_size()
        first = (line * self.pairs.stride(0) + kv_head * self.pairs.stride(1)) * size
        for start, stop in joined(runs, self.pairs.stride(2) * size):
            begin = (first + start) // mmap.PAGESIZE * mmap.PAGESIZE
            self.room.madvise(mmap.MADV_WILLNEED, begin, first + stop - begin)


def joined(runs: Runs, each: int) -> list[tuple[int, int]]:
    """Byte ranges of runs whose pairs have `each` bytes, with those that nearly touch as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(zip(runs.starts.tolist(), runs.stops.tolist(), strict=True)):
        if start == stop:
            continue
        if found and start * each <= found[-1][1] + GAP_BYTES:
            found[-1] = (found[-1][0], max(found[-1][1], stop * each))
        else:
            found.append((start * each, stop * each))
    return found
