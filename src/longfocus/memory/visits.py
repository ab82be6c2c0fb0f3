"""Visits to clusters: how those of one KV head rank for a query, and attention over some of them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.core.attention import Partial
from longfocus.core.blocked import exact_dtype
from longfocus.core.runs import Runs, attend_runs
from longfocus.memory.base import Part
from longfocus.memory.clusters import Clusters
from longfocus.memory.dense import dense

# Components of answers of single visits held at a time.
HELD = 2**24
# Queries that visit clusters each for itself: to bring those together that want the same one takes longer.
_FEW = 4


class Visited(NamedTuple):
    """Attention of some queries over the clusters that each of them wanted."""

    output: Float[Tensor, "queries dim"]
    lse: Float[Tensor, " queries"]
    each: Float[Tensor, "queries wanted"]
    """Log-sum-exp of every single visit."""


@dataclass(frozen=True)
class SortedHead:
    """One KV head of sorted parts, as some batch rows see it. Queries are `[queries, dim]`."""

    parts: tuple[Part, ...]
    lines: tuple[int, ...]
    kv_head: int
    scale: float
    softcap: float | None

    def clusters(self) -> list[tuple[Part, int, Clusters]]:
        """Every part, the line that is seen of it, and its clusters."""
        found = []
        for part, line in zip(self.parts, self.lines, strict=True):
            assert part.clusters is not None
            found.append((part, line, part.clusters))
        return found

    def ranks(self, query: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries clusters"]:
        """Expected log mass of all clusters of all parts."""
        scaled = query.float() * self.scale
        ranks = [own.log_mass(scaled, line, self.kv_head) for _, line, own in self.clusters()]
        return torch.cat([some.to(query.device) for some in ranks], 1)

    def visit(
        self, query: Float[Tensor, "queries dim"], wanted: Int[Tensor, "queries wanted"]
    ) -> Visited:
        """Attention of every query over the clusters that it wants; each is read once."""
        step = max(1, HELD // (wanted.shape[1] * query.shape[1]))
        found = [
            self._visit(*some) for some in zip(query.split(step), wanted.split(step), strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return Visited(*(torch.cat(of) for of in zip(*found, strict=True)))

    def _visit(self, query: Tensor, wanted: Tensor) -> Visited:
        queries, each = wanted.shape
        if queries <= _FEW:
            asking = query.repeat_interleave(each, 0)
            first_of_all = torch.arange(queries * each + 1, device=query.device)
            output, lse = self._attend_runs(asking, wanted.flatten(), first_of_all)
        else:
            # visits of a query to a cluster, cluster by cluster
            visits, order = wanted.flatten().sort(stable=True)
            clusters, counts = visits.unique_consecutive(return_counts=True)
            bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            output, lse = self._attend_runs(query[order // each], clusters, bounds)
            back = order.argsort()
            output, lse = output[back], lse[back]
        return _merged(output.unflatten(0, (-1, each)), lse.unflatten(0, (-1, each)))

    def _attend_runs(
        self, asking: Tensor, clusters: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output and lse of `asking`, of which [bounds[r], bounds[r + 1]) visit the cluster clusters[r]."""
        if len(self.parts) == 1:
            return self._attend_part(self.clusters()[0], asking, clusters, bounds)
        output = asking.new_empty(asking.shape, dtype=exact_dtype(asking))
        lse = output.new_empty(len(asking))
        counts, first = bounds.diff(), 0
        for known in self.clusters():
            here = ((clusters >= first) & (clusters < first + len(known[2]))).nonzero()[:, 0]
            if len(here):
                places = _places(bounds[here], counts[here])
                until = torch.cat([counts.new_zeros(1), counts[here].cumsum(0)])
                found = self._attend_part(known, asking[places], clusters[here] - first, until)
                output = output.index_copy(0, places, found[0])
                lse = lse.index_copy(0, places, found[1])
            first += len(known[2])
        return output, lse

    def _attend_part(
        self, known: tuple[Part, int, Clusters], asking: Tensor, clusters: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Tensor]:
        part, line, own = known
        # pairs on another device are looked at there
        there, starts = part.key.device, own.starts[line, self.kv_head]
        clusters = clusters.to(there)
        runs = Runs(starts[clusters], starts[clusters + 1], bounds.to(there))
        if part.file is not None:
            part.file.fetch(line, self.kv_head, runs)
        pairs = part.pairs(line, self.kv_head)
        settings = {"scale": self.scale, "softcap": self.softcap}
        output, lse = attend_runs(asking.to(there), pairs, runs, **settings)
        return output.to(asking.device), lse.to(asking.device)

    def everything(self, query: Float[Tensor, "queries dim"]) -> Partial:
        """Attention over all pairs."""
        for part in self.parts:
            part.verify()
        parts = [
            part.run(line, self.kv_head, 0, int(own.starts[line, self.kv_head, -1]))
            for part, line, own in self.clusters()
        ]
        found = dense(query[None, None], parts, scale=self.scale, softcap=self.softcap)
        return Partial(found.output[0, 0], found.lse[0, 0])


def _places(starts: Tensor, counts: Tensor) -> Tensor:
    """The numbers of [starts[r], starts[r] + counts[r]) of every r, one run after the other."""
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(first), device=first.device) - first
    return starts.repeat_interleave(counts) + within


def _merged(
    output: Float[Tensor, "queries wanted dim"], lse: Float[Tensor, "queries wanted"]
) -> Visited:
    """`merge` of the visits of every query."""
    largest = lse.detach().amax(1, keepdim=True)
    largest = torch.where(largest.isinf(), 0.0, largest)
    mass = (lse - largest).exp()
    total = mass.sum(1, keepdim=True)
    safe = torch.where(total > 0, total, 1.0)
    found = ((mass / safe)[:, None] @ output)[:, 0]
    both = torch.where(total > 0, largest + safe.log(), -torch.inf)[:, 0]
    return Visited(found, both, lse)
