"""Sorting pairs by the cluster of their key, and merging new pairs into sorted ones.

    cluster(part)            the same pairs, sorted, with `Clusters`; in_order takes it back
    cluster([main, tail])    the pairs of both as one sorted part; clusters that `main` has are kept

Every line and KV head has clusters and an order of its own. Key and value of a pair lie side by side, so that a cluster
is one run in memory and on disk; padding comes last. The order of pairs changes no answer: every search works on sorted
parts as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.clusters import (
    Clusters,
    Description,
    assign,
    count_for,
    sample_of,
    train,
)
from longfocus.memory.quantized import Scales
from longfocus.memory.tiers import Allocate, SpilledPairs, in_memory

RETRAIN_GROWTH = 2
"""Clusters are trained again when there should be so many times as many."""
# Components of pairs moved at a time.
_MOVED = 2**22


def cluster(
    given: Part | Sequence[Part], clusters: int | None = None, allocate: Allocate = in_memory
) -> Part:
    """The pairs of parts with the same rows as one part sorted by clusters, `clusters` of them (None: as many as suit).

    Equal parts give equal results. Takes the room of the result, and little more.
    """
    parts = [given] if isinstance(given, Part) else list(given)
    if len(parts) == 1 and parts[0].clusters is not None and clusters is None:
        return parts[0]
    for part in parts:
        part.verify()
    first, pairs = parts[0], sum(map(len, parts))
    if pairs > torch.iinfo(torch.int32).max:
        raise LongFocusError(
            f"{pairs:,} pairs cannot be sorted as one memory. Read the text as several documents."
        )
    lines, kv_heads, _, dim = first.key.shape
    wanted = clusters or count_for(pairs)
    if (
        first.clusters is not None
        and clusters is None
        and wanted < RETRAIN_GROWTH * len(first.clusters)
    ):
        wanted = len(first.clusters)
    shape = (lines, kv_heads, pairs, dim)
    key, value, scales = room(shape, first.key.dtype, first.key.device, allocate)
    found = []
    for line in range(lines):
        for kv_head in range(kv_heads):
            sort = _Sort(parts, line, kv_head, wanted)
            sort.move([part.key for part in parts], key[line, kv_head])
            sort.move([part.value for part in parts], value[line, kv_head])
            if scales is not None:
                for place in range(2):
                    own = [part.scales[place] for part in parts if part.scales is not None]
                    sort.move(own, scales[place][line, kv_head])
            found.append(sort.result())
    made = Clusters(*(torch.stack(of).unflatten(0, shape[:2]) for of in zip(*found, strict=True)))
    counts = made.starts[:, 0, -1]
    valid = None
    if bool((counts < pairs).any()):
        valid = torch.arange(pairs, device=counts.device) < counts[:, None]
    file = SpilledPairs.of(side_by_side(key, value))
    return Part(key, value, valid, first.rows, scales, file=file, clusters=made)


def room(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    allocate: Allocate = in_memory,
) -> tuple[Tensor, Tensor, Scales | None]:
    """Uninitialised keys and values `[lines, kv_heads, pairs, dim]` that lie side by side, and scales of int8 ones."""
    pairs = allocate((*shape[:-1], 2, shape[-1]), dtype, device)
    scales = None
    if dtype == torch.int8:
        by = torch.empty(*shape[:-1], 2, dtype=torch.float32, device=device)
        scales = Scales(by[..., 0], by[..., 1])
    return pairs[..., 0, :], pairs[..., 1, :], scales


def side_by_side(one: Tensor, other: Tensor) -> Tensor:
    """What keys and values of `room`, or their scales, are views of: `[lines, kv_heads, pairs, 2, ...]`."""
    size = one[:, :, :1].numel() // (one.shape[0] * one.shape[1])
    if other.data_ptr() != one.data_ptr() + size * one.element_size():
        return torch.stack([one, other], 3)
    shape = (*one.shape[:3], 2, *one.shape[3:])
    stride = (*one.stride()[:3], size, *one.stride()[3:])
    return one.as_strided(shape, stride, one.storage_offset())


class _Sorted(NamedTuple):
    """The fields of `Clusters` for one line and KV head."""

    centroids: Tensor
    spread: Tensor
    starts: Tensor
    order: Tensor


class _Sort:
    """Pairs of one line and KV head of all parts, side by side, and the order that they shall have."""

    def __init__(self, parts: Sequence[Part], line: int, kv_head: int, clusters: int) -> None:
        self.parts, self.line, self.kv_head = parts, line, kv_head
        known = parts[0].clusters
        if known is None or len(known) != clusters:
            known = None
            centroids = train(self._sample(clusters), clusters)
        else:
            centroids = known.centroids[line, kv_head]
        found = Description(clusters, centroids.shape[1], centroids.device)
        nearest = []
        for part in parts:
            if part is parts[0] and known is not None:
                sizes = known.sizes[line, kv_head]
                found.add_known(centroids, known.spread[line, kv_head], sizes)
                own = torch.arange(clusters, device=sizes.device).repeat_interleave(sizes)
                nearest += [own, own.new_full((len(part) - len(own),), clusters)]
            else:
                nearest += self._assign(part, centroids, found)
        self.nearest = torch.cat(nearest)
        self.centroids, self.spread = found.means_and_spread(centroids)
        self.sizes = found.sizes
        self.order = self.nearest.argsort(stable=True)

    def _assign(self, part: Part, centroids: Tensor, found: Description) -> list[Tensor]:
        """The cluster of every pair, and past the last one for padding."""
        nearest, step = [], max(1, _MOVED // part.key.shape[3])
        for start in range(0, max(len(part), 1), step):
            stop = min(start + step, len(part))
            keys = part.own_keys(self.line, self.kv_head, slice(start, stop))
            own = assign(keys, centroids)
            if part.valid is not None:
                own = torch.where(part.valid[self.line, start:stop], own, len(centroids))
            found.add(keys, own)
            nearest.append(own)
        return nearest

    def _sample(self, clusters: int) -> Tensor:
        """Keys to train on, none of them padding."""
        lengths = [len(p) if p.valid is None else int(p.valid[self.line].sum()) for p in self.parts]
        places = sample_of(sum(lengths), clusters).to(self.parts[0].key.device)
        first, keys, order = 0, [], []
        for part, length in zip(self.parts, lengths, strict=True):
            here = ((places >= first) & (places < first + length)).nonzero()[:, 0]
            own = places[here] - first
            if part.valid is not None:
                own = part.valid[self.line].nonzero()[own, 0]
            keys.append(part.own_keys(self.line, self.kv_head, own))
            order.append(here)
            first += length
        # the first ones are where training begins: they come from all parts
        return torch.cat(keys)[torch.cat(order).argsort()]

    def move(self, sources: Sequence[Tensor], target: Tensor) -> None:
        """Copy what belongs to the pairs, `[lines, kv_heads, pairs, ...]` of every part, into its new order."""
        step = max(1, _MOVED // max(target[:1].numel(), 1))
        for start in range(0, len(target), step):
            places, into, first = (
                self.order[start : start + step],
                target[start : start + step],
                0,
            )
            for source in sources:
                own, length = source[self.line, self.kv_head], source.shape[2]
                if len(sources) == 1:
                    into.copy_(own[places])
                else:
                    here = ((places >= first) & (places < first + length)).nonzero()[:, 0]
                    into[here] = own[places[here] - first]
                first += length

    def result(self) -> _Sorted:
        starts = torch.cat([self.sizes.new_zeros(1), self.sizes.cumsum(0)])
        before, first = [], 0
        for part in self.parts:
            own = torch.arange(len(part), device=starts.device)
            if part.clusters is not None:
                own = part.clusters.order[self.line, self.kv_head].long()
            before.append(own + first)
            first += len(part)
        order = torch.cat(before)[self.order].to(torch.int32)
        return _Sorted(self.centroids, self.spread, starts, order)


def in_order(part: Part, own: slice = slice(None)) -> Part:
    """Those pairs of a sorted part that stood in `own` before it was sorted; a part that is not sorted stays."""
    if part.clusters is None:
        return part
    part.verify()
    places = part.clusters.places[:, :, own].long()

    def moved(given: Tensor) -> Tensor:
        index = places
        if given.dim() == 4:
            index = places[..., None].expand(*places.shape, given.shape[3])
        return given.gather(2, index)

    scales = None if part.scales is None else Scales(*(moved(scale) for scale in part.scales))
    valid = None if part.valid is None else part.valid.gather(1, places[:, 0])
    return Part(moved(part.key), moved(part.value), valid, part.rows, scales)
