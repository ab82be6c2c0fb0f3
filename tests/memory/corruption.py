"""Ways in which a file of a document may be damaged or forged: each gives other bytes than those written.

Damage happens to bytes. A forgery is written by somebody who knows the format: its checksums are right.
"""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory.header import BLOCK_BYTES, ENTRY, Entry, Header, checksum, layout
from longfocus.memory.tensor_file import TensorFile

LENGTH_BYTES = 8
HUGE = [0, 1, 7, 2**25 + 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


class Refusal(NamedTuple):
    """How a file was refused."""

    moment: str
    """`open` or `verify`."""
    told: str


def refusal(path: Path, what: str, data: bytes | None = None) -> Refusal:
    """The refusal of a file, after `data` were written to it; fails unless there is one that names the file."""
    if data is not None:
        path.write_bytes(data)
    moment = "open"
    try:
        document = DocumentMemory.load(path)
        moment = "verify"
        document.verify()
    except LongFocusError as error:
        told = str(error)
    else:
        raise AssertionError(f"{what} was not noticed")
    assert str(path) in told, what
    assert len(told) < 2 * len(str(path)) + 500, f"{what}: {told}"
    return Refusal(moment, told)


def regions(path: Path) -> dict[str, tuple[int, int]]:
    """First and past-the-end byte of the length, the header, and every tensor."""
    header = TensorFile(path).header
    start = len(header.to_bytes())
    tensors = {
        name: (start + entry.start, start + entry.start + entry.nbytes)
        for name, entry in header.entries.items()
    }
    return {"length": (0, LENGTH_BYTES), "header": (LENGTH_BYTES, start), **tensors}


def flipped(data: bytes, bit: int) -> bytes:
    found = bytearray(data)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def damaged(path: Path, times: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What was done, and the bytes of the file then; each differs from the file."""
    data, random, places = path.read_bytes(), Random(seed), regions(path)
    for turn in range(times):
        name, (start, stop) = list(places.items())[turn % len(places)]
        what, damage = random.choice(list(DAMAGES.items()))
        found = damage(data, start, stop, random)
        if found != data:
            yield f"{turn}: {what} in {name}", found


def _flip(data: bytes, start: int, stop: int, random: Random) -> bytes:
    return flipped(data, random.randrange(8 * start, 8 * stop))


def _cut(data: bytes, start: int, stop: int, random: Random) -> bytes:
    return data[: random.randrange(start, stop)]


def _insert(data: bytes, start: int, stop: int, random: Random) -> bytes:
    place = random.randrange(start, stop)
    return data[:place] + random.randbytes(random.choice([1, 64, 4096])) + data[place:]


def _leave_out(data: bytes, start: int, stop: int, random: Random) -> bytes:
    place = random.randrange(start, stop)
    return data[:place] + data[place + random.choice([1, 64, 4096]) :]


def _zero(data: bytes, start: int, stop: int, random: Random) -> bytes:
    first = random.randrange(start, stop)
    last = min(first + random.choice([1, 64, 512]), stop)
    return data[:first] + bytes(last - first) + data[last:]


def _repeat(data: bytes, start: int, stop: int, random: Random) -> bytes:
    """A piece of the file stands where another should."""
    size = min(random.choice([1, 64, 512]), stop - start)
    source, place = random.randrange(len(data) - size), random.randrange(start, stop - size + 1)
    return data[:place] + data[source : source + size] + data[place + size :]


Damage = Callable[[bytes, int, int, Random], bytes]
DAMAGES: dict[str, Damage] = {
    # a single bit is the hardest to notice
    **{f"one bit ({n})": _flip for n in range(3)},
    "cut": _cut,
    "insert": _insert,
    "leave out": _leave_out,
    "zero": _zero,
    "repeat": _repeat,
}


def odd_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files that are no document, by what they are."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    for huge in [*HUGE, length - 64, length + 64, len(data), len(data) - 8, len(data) - 7]:
        yield f"header of {huge} bytes", struct.pack("<Q", huge) + data[8:]
    yield from {
        "nothing": b"",
        "zeros": bytes(4096),
        "zeros of the same size": bytes(len(data)),
        "text": b"this is a text" * 100,
        "twice": data + data,
        "one byte more": data + b"\0",
        "a line more": data + b"\n",
        "header only": data[: 8 + length],
        "data only": body,
        "gzip": b"\x1f\x8b\x08" + data,
    }.items()
    deep = b"[" * 100_000
    tables = b'{"a":' * 100_000
    for what, spelled in {
        "deep lists": deep,
        "deep tables": tables,
        "deep metadata": b'{"__metadata__":{"longfocus":'
        + json.dumps(deep.decode()).encode()
        + b"}}",
        "null": b"null",
        "number": b"1",
        "list": b"[]",
        "string": b'"x"',
        "empty": b"{}",
        "no metadata": b'{"__metadata__":{}}',
        "metadata of a number": b'{"__metadata__":{"longfocus":1}}',
        "metadata of a list": b'{"__metadata__":{"longfocus":"[]"}}',
        "metadata without checksums": b'{"__metadata__":{"longfocus":"{}"}}',
        "NaN": header.replace(b'\\"head_dim\\":8', b'\\"head_dim\\":NaN'),
        "infinity": header.replace(b'\\"head_dim\\":8', b'\\"head_dim\\":1e999'),
        "infinite offset": header.replace(b'"data_offsets":[0', b'"data_offsets":[Infinity'),
        "long number": header.replace(b'"data_offsets":[0', b'"data_offsets":[' + b"9" * 5000),
        "duplicate": header.replace(b'{"__metadata__"', b'{"text":{},"__metadata__"'),
        "duplicate inside": header.replace(b'\\"tokens\\":', b'\\"tokens\\":1,\\"tokens\\":'),
        "UTF-16": header.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + header,
        "Latin-1": header.replace(b"owl", b"\xf6wl"),
        "trailing NUL": header.rstrip() + b"\0" * 64,
    }.items():
        assert spelled != header, what
        yield f"header: {what}", struct.pack("<Q", len(spelled)) + spelled + body


def forged(
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
    entries: dict[str, Entry] | None = None,
) -> bytes:
    """The file with other metadata, tensors (None: left out) or entries, and the checksums that belong to them."""
    file = TensorFile(path)
    held = {name: file.tensor(name) for name in file.header.entries} | (tensors or {})
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    places = layout(kept)
    data = {
        name: kept[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name in places
    }
    sums = {
        name: [checksum(d[i : i + BLOCK_BYTES]) for i in range(0, len(d), BLOCK_BYTES)]
        for name, d in data.items()
    }
    header = Header(
        {**file.header.metadata, **(metadata or {})}, {**places, **(entries or {})}, sums
    )
    return header.to_bytes() + b"".join(data.values())


def without_longfocus(path: Path) -> bytes:
    """What another program would make of the file: the same tensors, its own metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    given = json.loads(data[8 : 8 + length])
    assert ENTRY in given["__metadata__"]
    given["__metadata__"] = {"format": "pt"}
    spelled = json.dumps(given).encode()
    return struct.pack("<Q", len(spelled)) + spelled + data[8 + length :]
