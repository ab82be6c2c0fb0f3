"""The pairs of one memory layer on a mapped file of tensors: verified, and loaded, when they are first looked at.

Pairs that lie sorted by clusters are verified block by block, as queries visit them: a document that is larger than the
memory of the machine is never read as a whole.
"""

import torch
from torch import Tensor

from longfocus.core.runs import Runs
from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.clusters import Clusters
from longfocus.memory.header import BLOCK_BYTES
from longfocus.memory.quantized import LARGEST, Scales
from longfocus.memory.tensor_file import TensorFile
from longfocus.memory.tiers import joined
from longfocus.memory.trusted import are_finite

_CLUSTERS = ("centroids", "spread", "starts")


def mapped_part(file: TensorFile, prefix: str) -> Part:
    """The tensors whose names begin so, as pairs `[1, kv_heads, tokens, dim]`; nothing is read."""
    names = {
        name.removeprefix(prefix): name for name in file.header.entries if name.startswith(prefix)
    }
    own = {what: file.tensor(name)[None] for what, name in names.items()}
    pairs = MappedPairs(file, prefix, list(names))
    if "pairs" not in own:
        scales = Scales(own["key_scale"], own["value_scale"]) if "key_scale" in own else None
        return Part(own["key"], own["value"], scales=scales, file=pairs)
    scales = Scales(own["scales"][..., 0], own["scales"][..., 1]) if "scales" in own else None
    clusters = Clusters(own["centroids"], own["spread"], own["starts"], own["order"])
    key, value = own["pairs"][..., 0, :], own["pairs"][..., 1, :]
    return Part(key, value, scales=scales, file=pairs, clusters=clusters)


class MappedPairs:
    """Verifies the tensors of one memory layer, each byte once (a `PairsFile`)."""

    def __init__(self, file: TensorFile, prefix: str, names: list[str]) -> None:
        self.file, self.prefix = file, prefix
        self.names = names
        self._waiting = set(names)
        self._refusal: LongFocusError | None = None

    def verify(self) -> None:
        """All tensors, pairs last: what says where they lie comes first."""
        if "starts" in self._waiting:
            self.verify_clusters()
        for name in sorted(self._waiting):
            self._verify(name)
        # another thread may have been here
        self._waiting.clear()

    def verify_clusters(self) -> None:
        """Centroids, their sizes, and the order of pairs."""
        if "starts" not in self._waiting:
            return
        for name in _CLUSTERS:
            self._verify(name)
        starts, spread = self._tensor("starts"), self._tensor("spread")
        tokens = self._tensor("pairs").shape[1]
        # differences of numbers that are out of range may overflow
        if bool(
            (starts < 0).any()
            or (starts > tokens).any()
            or (starts[:, 0] != 0).any()
            or (starts[:, -1] != tokens).any()
            or (starts.diff() < 0).any()
        ):
            raise self._altered("starts", "clusters overlap")
        if bool((spread < 0).any()):
            raise self._altered("spread", "it is negative")
        self._verify("order")
        for order in self._tensor("order"):
            if bool((order < 0).any() or (order >= tokens).any()) or len(order.unique()) < tokens:
                raise self._altered("order", "a pair is missing")
        for name in (*_CLUSTERS, "order"):
            self._waiting.discard(name)

    def announce(self, line: int, kv_head: int, runs: Runs) -> None:
        """Let the system load runs of pairs of one KV head, all at once."""
        del line
        for start, stop in self._ranges(kv_head, runs):
            self.file.will_need(self.prefix + "pairs", start, stop)

    def fetch(self, line: int, kv_head: int, runs: Runs) -> None:
        """Load runs of pairs of one KV head at once, and verify those that nobody has looked at."""
        self.announce(line, kv_head, runs)
        if "scales" in self._waiting:
            self._verify("scales")
            self._waiting.discard("scales")
        if "pairs" in self._waiting:
            for start, stop in self._ranges(kv_head, runs):
                self._verify("pairs", start, stop)

    def _ranges(self, kv_head: int, runs: Runs) -> list[tuple[int, int]]:
        """Bytes of the pairs of all KV heads where some runs lie."""
        pairs = self._tensor("pairs")
        each, first = (
            stride * pairs.element_size() for stride in (pairs.stride(1), pairs.stride(0))
        )
        return [(first * kv_head + a, first * kv_head + b) for a, b in joined(runs, each)]

    def _tensor(self, name: str) -> Tensor:
        return self.file.tensor(self.prefix + name)

    def _verify(self, name: str, start: int = 0, stop: int | None = None) -> None:
        if self._refusal is not None:
            # the file does not tell twice which blocks it read
            raise self._refusal
        tensor = self._tensor(name).flatten()
        # what a scale makes of int8 must be finite too
        largest = LARGEST if "scale" in name else 1
        for block in self.file.verify(self.prefix + name, start, stop):
            if not tensor.is_floating_point():
                continue
            each = BLOCK_BYTES // tensor.element_size()
            some = tensor[block * each : (block + 1) * each]
            if not are_finite(torch.stack(some.aminmax()) * largest):
                self._refusal = LongFocusError(
                    f"{self.file.path} holds keys or values that are NaN or infinite ({self.prefix}{name}), which "
                    "would spoil every answer. Read the text again."
                )
                raise self._refusal

    def _altered(self, what: str, why: str) -> LongFocusError:
        return LongFocusError(
            f"{self.file.path} was altered: {why} ({self.prefix}{what}). Copy the file again, or read the text again."
        )
