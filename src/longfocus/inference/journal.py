"""What has been read so far of one source, in a file that survives being killed at any moment.

    {"key", "name"}                                  one line: what is being read, with what; name of the document
    {"sha256", "layers", "dtype", "shape"} pairs     a record a step: a line, then keys and values of all layers

Records are only ever appended. Opening takes those that are whole, and cuts off what follows.
"""

import fcntl
import json
import math
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longfocus.atomic import told_with, write_all
from longfocus.errors import LongFocusError
from longfocus.memory.header import canonical

Pairs = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values `[1, kv_heads, tokens, head_dim]` of every memory layer."""

_MAX_LINE = 4096


SUFFIX = ".reading"


class Unfinished(NamedTuple):
    """A journal that lies in a folder."""

    path: Path
    name: str
    """Of the document; empty if the journal does not say it."""
    nbytes: int


def unfinished(folder: Path) -> list[Unfinished]:
    """The journals in a folder, of whatever version. Nothing is changed."""
    found = []
    for path in sorted(folder.glob(f".*{SUFFIX}")):
        # others may finish or remove one meanwhile, or have laid something else there
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                about = os.fstat(descriptor)
                if stat.S_ISREG(about.st_mode):
                    name = _name(os.pread(descriptor, _MAX_LINE, 0))
                    found.append(Unfinished(path, name, about.st_size))
            finally:
                os.close(descriptor)
    return found


def _name(start: bytes) -> str:
    try:
        name = json.loads(start.partition(b"\n")[0])["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


class Journal:
    """The records of one unfinished reading; one process at a time may hold it.

    A journal of another `key` is begun anew. Raises LongFocusError if it cannot be opened or written.
    """

    def __init__(self, path: Path, key: str, name: str = "") -> None:
        self.path = path
        first = canonical({"key": key, "name": name}).encode() + b"\n"
        self._whole = self._last = len(first)
        self.of = ""
        """What the latest of `records` was read from, as `append` was told."""
        with told_with(path):
            self._file = _locked(path)
            self._descriptor = self._file.fileno()
            try:
                if self._file.readline(_MAX_LINE) != first:
                    self._cut(0)
                    write_all(self._descriptor, first)
            except BaseException:
                self.close()
                raise

    def records(self) -> Generator[dict[int, tuple[Tensor, Tensor]], None, None]:
        """Everything that was kept, in order; then the journal is ready for more."""
        with told_with(self.path):
            self._file.seek(self._whole)
            while (record := self._next()) is not None:
                yield record
            self._cut(self._whole)

    def forget_last(self) -> None:
        """Drop the latest of `records`, and all behind it: they are of another text."""
        with told_with(self.path):
            self._whole = self._last
            self._cut(self._whole)

    def append(self, pairs: Pairs, of: str = "") -> None:
        """Keep what one more step has read; `of` tells what from."""
        payload = [
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            for both in pairs.values()
            for tensor in both
        ]
        key, _ = next(iter(pairs.values()))
        about = {
            "of": of,
            "layers": list(pairs),
            "dtype": str(key.dtype).removeprefix("torch."),
            "shape": list(key.shape),
        }
        line = canonical({"sha256": _digest(about, payload), **about})
        with told_with(self.path):
            write_all(self._descriptor, line.encode() + b"\n")
            for data in payload:
                write_all(self._descriptor, data)

    def close(self, *, remove: bool = False) -> None:
        """Let others have it; `remove` when what was read is safe elsewhere."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _next(self) -> dict[int, tuple[Tensor, Tensor]] | None:
        """The next record, if it is whole."""
        line = self._file.readline(_MAX_LINE)
        try:
            about: dict[str, Any] = json.loads(line)
            digest, layers, shape = about.pop("sha256"), about["layers"], about["shape"]
            dtype = getattr(torch, about["dtype"])
            size = dtype.itemsize * math.prod(shape)
            if 2 * len(layers) * size > os.fstat(self._descriptor).st_size:
                return None
            payload = [self._read(size) for _ in range(2 * len(layers))]
            is_whole = None not in payload and _digest(about, payload) == digest
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if not is_whole:
            return None
        self._last, self.of = self._whole, str(about.get("of", ""))
        self._whole += len(line) + size * len(payload)
        tensors = [torch.frombuffer(data, dtype=dtype).view(shape) for data in payload]
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        return dict(zip(layers, pairs, strict=True))

    def _read(self, size: int) -> bytearray | None:
        data = bytearray()
        while len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                return None
            data += more
        return data

    def _cut(self, length: int) -> None:
        os.ftruncate(self._descriptor, length)
        os.lseek(self._descriptor, length, os.SEEK_SET)


def _locked(path: Path) -> FileIO:
    """The file, made if it is missing, which nobody else holds."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise LongFocusError(
                f"{path} is being written by another process that reads the same source. Wait for it, or stop it."
            ) from error
        except OSError:
            # where there are no locks, two readings would at worst cut off each other's records
            return file
        if os.fstat(descriptor).st_nlink:
            return file
        # whoever held it removed it between the two calls
        file.close()


def _digest(about: Mapping[str, Any], payload: list[Any]) -> str:
    found = sha256(canonical(about).encode())
    for data in payload:
        found.update(data)
    return found.hexdigest()
