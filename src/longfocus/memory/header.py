"""The header of a file of tensors (tensor_file.py): where they lie, what the caller says, and checksums of everything.

A header has exactly one spelling, so that reading one and spelling it again checks all that is in it.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 2**20
ENTRY = "longfocus"
_ALIGNMENT = 64
_DIGITS = 32
_MAX_DIMENSIONS = 8
UNKNOWN = "0" * _DIGITS
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the data."""

    @property
    def nbytes(self) -> int:
        size = DTYPES[self.dtype].itemsize
        for length in self.shape:
            size *= length
        return size

    @property
    def blocks(self) -> int:
        return -(-self.nbytes // BLOCK_BYTES)


class Mismatch(ValueError):
    """A header that is spelled otherwise than its content is: something in it was changed."""


@dataclass(frozen=True)
class Header:
    """What stands before the data."""

    metadata: Mapping[str, Any]
    """What the caller says."""
    entries: Mapping[str, Entry]
    checksums: Mapping[str, list[str]]
    """Of every block of every tensor."""

    @property
    def checksum(self) -> str:
        """Of the header, which holds those of all data: two files with equal ones are equal."""
        return checksum(self._spelled(UNKNOWN))

    def to_bytes(self) -> bytes:
        return self._spelled(self.checksum)

    def _spelled(self, own: str) -> bytes:
        every = {**self.metadata, "checksums": {"blocks": self.checksums, "header": own}}
        entries = {
            name: {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.start, entry.start + entry.nbytes],
            }
            for name, entry in self.entries.items()
        }
        whole = canonical({"__metadata__": {ENTRY: canonical(every)}, **entries}).encode()
        whole += b" " * (-(8 + len(whole)) % _ALIGNMENT)
        return struct.pack("<Q", len(whole)) + whole

    @classmethod
    def from_bytes(cls, spelled: bytes) -> "Header":
        """Raises Mismatch for a header that was changed, another ValueError or a RecursionError for what is none."""
        try:
            given = json.loads(spelled[8:])
            metadata = json.loads(given.pop("__metadata__")[ENTRY])
            checksums = metadata.pop("checksums")
            entries = {name: _entry(entry) for name, entry in given.items()}
            blocks = {name: list(own) for name, own in checksums["blocks"].items()}
            header = cls(metadata, entries, blocks)
            is_same = header._spelled(checksums["header"]) == spelled
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        expected = {name: entry.blocks for name, entry in entries.items()}
        if (
            not is_same
            or header.checksum != checksums["header"]
            or expected != {name: len(own) for name, own in blocks.items()}
        ):
            raise Mismatch
        return header


def layout(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Tensors in the order of the file: larger elements come first, so that all are aligned, then by name."""
    unplaced = {
        name: Entry(_NAMES[tensor.dtype], tuple(tensor.shape), 0)
        for name, tensor in tensors.items()
    }
    return placed(unplaced)


def placed(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The same tensors, each behind the one before it."""
    found, start = {}, 0
    for name in sorted(entries, key=lambda name: (-DTYPES[entries[name].dtype].itemsize, name)):
        found[name] = entries[name]._replace(start=start)
        start += found[name].nbytes
    return found


def canonical(value: Any) -> str:
    """JSON with one spelling: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(data: bytes | memoryview) -> str:
    return sha256(data).hexdigest()[:_DIGITS]


def _entry(given: Mapping[str, Any]) -> Entry:
    shape = tuple(given["shape"])
    start = given["data_offsets"][0]
    if len(shape) > _MAX_DIMENSIONS or not all(map(_is_whole, (*shape, start))):
        raise ValueError("a shape or an offset")
    if given["dtype"] not in DTYPES:
        raise ValueError("a dtype")
    return Entry(given["dtype"], shape, start)


def _is_whole(given: Any) -> bool:
    return type(given) is int and 0 <= given < 2**63
