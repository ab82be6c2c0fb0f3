"""Clustered search: every query attends to all pairs of the clusters that promise it the most.

    rank     clusters of all sorted parts by their expected mass
    visit    the best 16 (more where all clusters are read anyway), then as many again, and so on, each cluster once
             with all queries that want it
    stop     a query whose latter half of clusters added next to nothing, and whose next ones promise no more; one that
             would visit a quarter of all sees all

Parts that are not sorted, such as what a conversation has remembered last, are attended to in full. An audit measures
on some queries how much of the attention was kept, and lets the search visit more where that is too little (audit.py).
Ranking and stopping choose; what is attended to is exact. With `certify` every query is given a proven bound on what it
missed, and visits more where that is too much (certified.py).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from longfocus.core.attention import Partial, merge, under_autocast
from longfocus.memory.audit import Audit
from longfocus.memory.base import Part
from longfocus.memory.certified import Certificate, certify, first_of
from longfocus.memory.dense import dense
from longfocus.memory.visits import HELD, SortedHead

FIRST = 16
"""Clusters that every query visits, at least."""
TOGETHER = 8
"""Queries that visit a cluster at the price of one: reading it costs more."""
ANNOUNCED = 4
"""Tokens, of all rows, whose clusters in files are announced for all heads before any is visited."""
DENSE_SHARE = 0.25
"""A query that wants more of the clusters than this attends to everything."""


class Clustered:
    """Attention over the clusters that matter; keeps `retain` of the attention on the memory, by its audit.

    One object serves one memory layer. `audit.report()` says what was measured. With `certify` no query misses more
    than 1 - `retain`: `certificate.latest` has their bounds, `certificate.report()` sums up all of them.
    """

    def __init__(
        self, retain: float = 0.99, audit: Audit | None = None, *, certify: bool = False
    ) -> None:
        self.audit = audit or Audit(retain, least=FIRST)
        self.certificate = Certificate(retain) if certify else None

    def __call__(
        self,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence[Part],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial:
        if not any(part.clusters is not None for part in parts):
            if self.certificate is not None:
                self.certificate.latest = query.new_zeros(query.shape[:3], dtype=torch.float64)
                self.certificate.note()
            return dense(query, parts, scale=scale, softcap=softcap)

        def search(query: Tensor) -> Partial:
            return _search(query, parts, self.audit, self.certificate, scale, softcap)

        def exact(query: Tensor) -> Partial:
            return dense(query, parts, scale=scale, softcap=softcap)

        found = search(query)
        if not found.output.requires_grad:
            found = self.audit.check(query, found, search, exact)
        if self.certificate is not None:
            # those of the last search, which found it
            self.certificate.note()
        return found


def _search(
    query: Tensor,
    parts: Sequence[Part],
    audit: Audit,
    certificate: Certificate | None,
    scale: float,
    softcap: float | None,
) -> Partial:
    """Attention over the clusters that matter of all parts."""
    is_sorted = [part.clusters is not None for part in parts]
    plain = [part for part, own in zip(parts, is_sorted, strict=True) if not own]
    rest = dense(query, plain, scale=scale, softcap=softcap)
    found = [part for part, own in zip(parts, is_sorted, strict=True) if own]
    for part in found:
        if part.file is not None:
            part.file.verify_clusters()
    device, (query, _, _) = query.device.type, under_autocast(query, query, query)
    output, lse = torch.empty_like(rest.output), torch.empty_like(rest.lse)
    floor, missed = rest.lse, torch.zeros_like(rest.lse, dtype=torch.float64)
    if certificate is not None:
        floor = certificate.floor(query, plain, rest.lse, scale, softcap)
        certificate.latest = missed
    kv_heads = found[0].key.shape[1]
    heads = query.shape[1] // kv_heads
    batch = query.shape[0]
    seen = [tuple(part.line_of(row) for part in found) for row in range(batch)]
    for lines in sorted(set(seen)):
        rows = [row for row in range(batch) if seen[row] == lines]
        memories = [_Head(tuple(found), lines, head, scale, softcap) for head in range(kv_heads)]
        _announce(memories, query[rows].detach(), audit.width.least)
        for kv_head, memory in enumerate(memories):
            own = slice(kv_head * heads, (kv_head + 1) * heads)
            shape = (len(rows), heads, query.shape[2])
            known = _Known(
                rest.output[rows, own].flatten(0, 2),
                rest.lse[rows, own].flatten(),
                floor[rows, own].flatten(),
            )
            # autocast has done its part: it must not round ranks
            with torch.autocast(device, enabled=False):
                best = memory.attend(query[rows, own].flatten(0, 2), known, audit, certificate)
            output[rows, own] = best.output.view(*shape, -1)
            lse[rows, own] = best.lse.view(shape)
            missed[rows, own] = best.missed.view(shape)
    return Partial(output, lse)


def _announce(memories: Sequence[SortedHead], query: Tensor, best: int) -> None:
    """Let all heads load at once what a token will visit: one after the other would wait for each."""
    parts, (rows, _, queries, _) = memories[0].parts, query.shape
    if rows * queries > ANNOUNCED or all(part.file is None for part in parts):
        return
    with torch.autocast(query.device.type, enabled=False):
        for memory, own in zip(memories, query.chunk(len(memories), dim=1), strict=True):
            memory.announce(own.flatten(0, 2), best)


def _first_round(queries: int, clusters: int, most: int, least: int) -> int:
    """Clusters that every query visits first: more of them where all are read anyway, as long as few want the same."""
    while clusters <= queries * least <= TOGETHER * clusters / 2 and 2 * least <= most:
        least *= 2
    return least


class _Known(NamedTuple):
    """Attention over the parts that are not sorted."""

    output: Tensor
    lse: Tensor
    floor: Tensor
    """What `lse` is at least, if queries are certified."""


class _Found(NamedTuple):
    output: Tensor
    lse: Tensor
    missed: Tensor
    """Proven bounds on the share that was missed, if queries are certified."""


class _Head(SortedHead):
    """Which clusters queries visit."""

    def attend(
        self, query: Tensor, known: _Known, audit: Audit, certificate: Certificate | None
    ) -> _Found:
        """Merge what is known of the rest of the memory with the clusters that matter."""
        # a library has many clusters: some queries at a time are ranked
        step = max(1, HELD // sum(len(own) for _, _, own in self.clusters()))
        some = zip(*(given.split(step) for given in (query, *known)), strict=True)
        found = [self._attend(own, _Known(*seen), audit, certificate) for own, *seen in some]
        return _Found(*(torch.cat(of) for of in zip(*found, strict=True)))

    def _attend(
        self, query: Tensor, known: _Known, audit: Audit, certificate: Certificate | None
    ) -> _Found:
        ranks = self.ranks(query.detach())
        clusters = ranks.shape[1]
        most = int(DENSE_SHARE * clusters)
        waiting = torch.arange(len(query), device=query.device)
        start, stop = 0, _first_round(len(query), clusters, most, audit.width.least)
        output, lse = known.output.clone(), known.lse.clone()
        visits = torch.zeros_like(waiting)
        while len(waiting) and stop <= most:
            best = ranks[waiting].topk(2 * stop, dim=1)
            more = self.visit(query[waiting], best.indices[:, start:stop])
            both = merge([Partial(output[waiting], lse[waiting]), Partial(more.output, more.lse)])
            output[waiting], lse[waiting] = both
            visits[waiting] = stop
            # what the latter half has added to all that was seen, or what the next ones may be expected to add
            late = more.each.detach()[:, stop // 2 - start :].logsumexp(1)
            adds = torch.maximum(late, best.values[:, stop:].logsumexp(1))
            waiting = waiting[adds - both.lse.detach() > math.log(audit.width.tolerance)]
            start, stop = stop, 2 * stop
        if len(waiting):
            # what was visited is visited again
            both = self._with_the_rest(query, known, waiting)
            output[waiting], lse[waiting] = both
            visits[waiting] = clusters
        if certificate is None:
            return _Found(output, lse, torch.zeros_like(known.floor, dtype=torch.float64))
        found = Partial(output, lse)
        return self._certified(query, known, found, first_of(ranks, visits), certificate)

    def _certified(
        self,
        query: Tensor,
        known: _Known,
        found: Partial,
        visited: Tensor,
        certificate: Certificate,
    ) -> _Found:
        """The same with proven bounds, and with more clusters for queries that may have missed too much."""
        parts = [(part, line) for part, line, _ in self.clusters()]
        own = (query.detach(), found.lse, known.floor, parts, self.kv_head)
        both, missed = certify(
            query,
            found,
            visited,
            certificate.prove(*own, scale=self.scale, softcap=self.softcap),
            most_missed=certificate.most,
            most_visited=int(DENSE_SHARE * visited.shape[1]),
            visit=lambda asking, wanted: Partial(*self.visit(asking, wanted)[:2]),
            everything=lambda waiting: self._with_the_rest(query, known, waiting),
        )
        return _Found(*both, missed)

    def _with_the_rest(self, query: Tensor, known: _Known, waiting: Tensor) -> Partial:
        """The answers of some of the queries over all of the memory."""
        again = Partial(known.output[waiting], known.lse[waiting])
        return merge([again, self.everything(query[waiting])])
