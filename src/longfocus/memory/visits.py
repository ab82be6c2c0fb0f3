"""Visits to clusters: how those of one KV head rank for a query, and attention over some of them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.core.attention import Partial
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

    def announce(self, query: Float[Tensor, "queries dim"], best: int) -> None:
        """Have the system begin to load the clusters in files that promise the most to some queries."""
        ranks, first = self.ranks(query), 0
        wanted = ranks.topk(min(best, ranks.shape[1])).indices.unique()
        for part, line, own in self.clusters():
            starts = own.starts[line, self.kv_head]
            here = wanted[(wanted >= first) & (wanted < first + len(own))].to(starts.device) - first
            if part.file is not None and len(here):
                runs = Runs(starts[here], starts[here + 1], starts[:1])
                part.file.announce(line, self.kv_head, runs)
            first += len(own)

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
        if queries <= _FEW and len(self.parts) == 1:
            clusters, order = wanted.flatten(), torch.arange(wanted.numel(), device=query.device)
            asking = torch.arange(wanted.numel() + 1, device=query.device)
        else:
            # visits of a query to a cluster, cluster by cluster
            visits, order = wanted.flatten().sort(stable=True)
            clusters, counts = visits.unique_consecutive(return_counts=True)
            asking = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        answers = Runs(clusters, clusters, asking, order, each).answers(query)
        first = 0
        for part, line, own in self.clusters():
            few = slice(0, len(clusters))
            if len(self.parts) > 1:
                bounds = torch.tensor([first, first + len(own)], device=clusters.device)
                few = slice(*torch.searchsorted(clusters, bounds).tolist())
            starts = own.starts[line, self.kv_head]
            chosen = (clusters[few] - first).to(starts.device)
            runs = Runs(
                starts[chosen], starts[chosen + 1], asking[few.start : few.stop + 1], order, each
            )
            if len(chosen):
                self._attend_part(part, line, query, runs, answers)
            first += len(own)
        output, lse = answers
        return _merged(output.unflatten(0, (-1, each)), lse.unflatten(0, (-1, each)))

    def _attend_part(
        self, part: Part, line: int, query: Tensor, runs: Runs, into: tuple[Tensor, Tensor]
    ) -> None:
        """Write the answers of visits to some clusters of a part."""
        there = part.key.device
        if part.file is not None:
            part.file.fetch(line, self.kv_head, runs)
        pairs = part.pairs(line, self.kv_head)
        settings = {"scale": self.scale, "softcap": self.softcap}
        if query.device == there:
            attend_runs(query, pairs, runs, **settings, into=into)
            return
        # pairs on another device are looked at there
        assert runs.order is not None
        rows = runs.order[runs.asking[0] : runs.asking[-1]]
        runs = runs._replace(asking=runs.asking.to(there), order=runs.order.to(there))
        found = attend_runs(query.to(there), pairs, runs, **settings)
        for mine, own in zip(into, found, strict=True):
            mine[rows] = own[rows.to(there)].to(mine.device)

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
