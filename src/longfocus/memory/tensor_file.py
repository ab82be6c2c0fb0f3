"""A file of tensors that proves what it holds: safetensors with checksums, written whole, opened by mmap.

    8 bytes    length of the header, little endian
    header     {"__metadata__": {"longfocus": CANONICAL JSON}, name: {"dtype", "shape", "data_offsets"}, ...}, spaces
    data       tensor after tensor, largest elements first, then by name

The one metadata entry holds what the caller says plus `checksums`: one of every block of 1 MiB of every tensor, and one
of the header itself. Any safetensors reader reads such a file. Opening reads the header only; blocks are verified when
they are first looked at. Nothing is ever unpickled.
"""

import mmap
import os
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longfocus.atomic import whole_file, write_all
from longfocus.errors import LongFocusError
from longfocus.memory.header import (
    BLOCK_BYTES,
    DTYPES,
    UNKNOWN,
    Header,
    Mismatch,
    checksum,
    layout,
    placed,
)

_MAX_HEADER = 2**25


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, replaces: bool = True
) -> None:
    """Write a file; equal tensors and metadata give equal bytes. Tensors need not be contiguous nor on the CPU.

    Raises LongFocusError, with what was there before intact, if it cannot be written.
    """
    entries = layout(tensors)
    blank: dict[str, list[str]] = {
        name: [UNKNOWN] * entry.blocks for name, entry in entries.items()
    }
    if len(Header(metadata, entries, blank).to_bytes()) > _MAX_HEADER:
        raise LongFocusError(
            f"{path} cannot be written: what it says of itself takes more than {_MAX_HEADER:,} bytes. Shorten the "
            "metadata, or split the text."
        )
    with whole_file(path, replaces=replaces, follows_links=False) as descriptor:
        # the header has its final length from the start
        write_all(descriptor, Header(metadata, entries, blank).to_bytes())
        checksums = {}
        for name in entries:
            checksums[name] = []
            for block in _in_blocks(tensors[name]):
                write_all(descriptor, block)
                checksums[name].append(checksum(block))
        os.lseek(descriptor, 0, os.SEEK_SET)
        write_all(descriptor, Header(metadata, entries, checksums).to_bytes())


def file_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """The checksum of the file that `write_tensors` would write."""
    entries = layout(tensors)
    checksums = {name: [checksum(block) for block in _in_blocks(tensors[name])] for name in entries}
    return Header(metadata, entries, checksums).checksum


class TensorFile:
    """An open file: its metadata, and tensors that are mapped, not read.

    Raises LongFocusError, naming the file, for whatever is not such a file; `verify` does for data that were altered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = _open(path)
        try:
            self.nbytes = os.fstat(descriptor).st_size
            spelled = self._read_header(descriptor)
            self._data_start = len(spelled)
            self.header = self._parse(spelled)
            self._map = self._mapped(descriptor)
        except OSError as error:
            raise LongFocusError(
                f"{path} cannot be read: {error.strerror or error}. Check the disk, or copy the file again."
            ) from error
        finally:
            os.close(descriptor)
        self._is_verified = {
            name: bytearray(entry.blocks) for name, entry in self.header.entries.items()
        }

    def tensor(self, name: str) -> Tensor:
        """A tensor on the mapped file: nothing is read before it is used, and nothing is verified."""
        entry = self.header.entries[name]
        start = self._data_start + entry.start
        dtype = DTYPES[entry.dtype]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(
            self._map, dtype=dtype, count=entry.nbytes // dtype.itemsize, offset=start
        )
        return flat.view(entry.shape)

    def verify(self, name: str, start: int = 0, stop: int | None = None) -> list[int]:
        """Raise LongFocusError unless bytes [start, stop) of a tensor are those written; each block is read once.

        Returns the blocks that were read now.
        """
        entry = self.header.entries[name]
        done = self._is_verified[name]
        stop, read = entry.nbytes if stop is None else stop, []
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if done[block]:
                continue
            first = self._data_start + entry.start + block * BLOCK_BYTES
            last = min(first + BLOCK_BYTES, self._data_start + entry.start + entry.nbytes)
            with memoryview(self._map)[first:last] as data:
                found = checksum(data)
            if found != self.header.checksums[name][block]:
                raise LongFocusError(
                    f"{self.path} was altered or damaged: block {block} of {name!r} has another checksum than the "
                    f"header says. {_AGAIN}"
                )
            done[block] = True
            read.append(block)
        return read

    def will_need(self, name: str, start: int, stop: int) -> None:
        """Let the system load bytes [start, stop) of a tensor, all at once: much faster than when they are touched."""
        first = self._data_start + self.header.entries[name].start
        begin = (first + start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, begin, first + stop - begin)

    def _mapped(self, descriptor: int) -> mmap.mmap:
        try:
            return mmap.mmap(
                descriptor, self.nbytes, flags=_PRIVATE, prot=_READ_AND_WRITE, **_NO_DESCRIPTOR
            )
        except ValueError as error:
            raise self._refusal("it was cut off while it was opened") from error

    def _read_header(self, descriptor: int) -> bytes:
        """The first bytes of the file: length and header."""
        prefix = os.pread(descriptor, 8, 0)
        if len(prefix) < 8:
            raise self._refusal(f"it has {self.nbytes} bytes, less than the length of a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER, self.nbytes - 8):
            raise self._refusal(
                f"its header should have {length:,} bytes, of at most {min(_MAX_HEADER, self.nbytes - 8):,}"
            )
        header = prefix
        while len(header) < 8 + length:
            more = os.pread(descriptor, 8 + length - len(header), len(header))
            if not more:
                raise self._refusal("it ends within its header")
            header += more
        return header

    def _parse(self, spelled: bytes) -> Header:
        try:
            header = Header.from_bytes(spelled)
        except Mismatch as error:
            raise LongFocusError(
                f"{self.path} was altered or damaged: its header has another checksum than it says. {_AGAIN}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._refusal(
                f"its header cannot be understood ({type(error).__name__})"
            ) from error
        if placed(header.entries) != header.entries:
            raise self._refusal("its tensors overlap, leave holes, or are in another order")
        expected = len(spelled) + sum(entry.nbytes for entry in header.entries.values())
        if self.nbytes != expected:
            raise LongFocusError(
                f"{self.path} has {self.nbytes:,} bytes, and should have {expected:,}: it was cut off or added to. "
                f"{_AGAIN}"
            )
        return header

    def _refusal(self, why: str) -> LongFocusError:
        return LongFocusError(
            f"{self.path} is not a file of LongFocus: {why}. Check the path, or copy the file again."
        )


_AGAIN = "Copy the file again, or read the text again."
_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
"""torch takes no buffers that cannot be written; in a private map, writing changes a copy."""
_PRIVATE = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
"""With Linux' MAP_NORESERVE: a file may be larger than the memory of the machine."""
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""An older Python keeps a descriptor for each map, and a process may have so many only (ulimit -n)."""


def _open(path: Path) -> int:
    """A descriptor of a regular file; a link could lead anywhere, and a pipe would wait for ever."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if os.path.islink(path):
            raise LongFocusError(
                f"{path} is a symbolic link, which is not followed. Give the file itself."
            ) from error
        raise LongFocusError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise LongFocusError(f"{str(path)!r} cannot be the name of a file: {error}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LongFocusError(f"{path} is not a file. Give the path of one.")
    return descriptor


def _in_blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in blocks of BLOCK_BYTES, the last may be shorter."""
    waiting = bytearray()
    for piece in _contiguous(tensor.detach()):
        data = piece.cpu().flatten().view(torch.uint8).numpy().data
        while data:
            if not waiting and len(data) >= BLOCK_BYTES:
                yield data[:BLOCK_BYTES]
                data = data[BLOCK_BYTES:]
                continue
            room = BLOCK_BYTES - len(waiting)
            waiting += data[:room]
            data = data[room:]
            if len(waiting) == BLOCK_BYTES:
                yield memoryview(bytes(waiting))
                waiting.clear()
    if waiting:
        yield memoryview(bytes(waiting))


def _contiguous(tensor: Tensor) -> Iterator[Tensor]:
    """Pieces of a tensor in order; none is a copy of more than a block."""
    if tensor.is_contiguous() or tensor.nbytes <= BLOCK_BYTES:
        yield tensor.contiguous()
        return
    rows = BLOCK_BYTES * len(tensor) // tensor.nbytes
    for some in tensor.split(max(rows, 1)):
        yield from _contiguous(some if rows else some[0])
