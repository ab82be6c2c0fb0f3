"""Clustered search with a certificate: every query gets a proven bound on what it missed, and visits more if it must.

    Certificate   what one search of one memory layer has proven; keeps the residuals of sorted parts
    certify       visits for some queries the clusters that may hold most of what they missed, until their bounds are
                  under the level, in the end everything

The bound is that of certificate.py; pairs that are not sorted are attended to in full, and count as seen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from longfocus.core.attention import Partial, merge
from longfocus.memory.audit import reports
from longfocus.memory.base import Part
from longfocus.memory.certificate import Masses, lse_error, masses, missed_share
from longfocus.memory.dense import dense
from longfocus.memory.residuals import Residuals, largest_key, norm

FIRST = 8
"""Clusters that a query visits beyond its own, at first."""
# Mass that is there, and of which nothing is known.
_LEAST = -1e300


class Certified(NamedTuple):
    """Proven bounds on the share of the attention on the memory that was missed, over all queries of all heads."""

    mean: float
    most: float
    queries: int


def certified(searches: Mapping[int, object]) -> dict[int, Certified]:
    """What was proven of some searches, by their memory layer."""
    return reports(searches, "certificate")


class Proof(NamedTuple):
    """What is known of some queries of one KV head before they are certified."""

    masses: Masses
    reference: Float[Tensor, " queries"]
    rest: Float[Tensor, " queries"]
    """Proven mass of all that is not in clusters, as multiples of exp(reference)."""
    off: Float[Tensor, " queries"]
    """How far a computed log-sum-exp may be off."""

    def shares(
        self, lse: Float[Tensor, " queries"], visited: Bool[Tensor, "queries clusters"]
    ) -> Float[Tensor, " queries"]:
        """At most so much was missed."""
        computed = (lse.double() - self.reference - self.off).exp()
        proven = self.masses.lower.masked_fill(~visited, 0.0).sum(1) + self.rest
        computed = torch.where(computed.isfinite(), computed, 0.0)
        return missed_share(self.masses, visited, torch.maximum(computed, proven))


class Certificate:
    """Bounds for the queries of one clustered search; none is to be over 1 - `retain`."""

    def __init__(self, retain: float) -> None:
        self.most = 1 - retain
        self.latest: Tensor | None = None
        """Bounds `[batch, heads, query]` of the latest queries."""
        self._residuals = WeakIdKeyDictionary()
        self._sum, self._largest, self._queries = 0.0, 0.0, 0

    def report(self) -> Certified | None:
        """What was proven of all queries so far; None before there were any."""
        if not self._queries:
            return None
        return Certified(self._sum / self._queries, self._largest, self._queries)

    def note(self) -> None:
        """Count the latest queries."""
        missed = self.latest
        if missed is not None and missed.numel():
            self._sum += float(missed.sum())
            self._largest = max(self._largest, float(missed.max()))
            self._queries += missed.numel()

    def floor(
        self,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence[Part],
        lse: Float[Tensor, "batch heads query"],
        scale: float,
        softcap: float | None,
    ) -> Float[Tensor, "batch heads query"]:
        """A proven lower bound on the log-sum-exp of parts that are attended to in full; -inf only if they are empty.

        `lse` is what was computed for them.
        """
        pairs = sum(map(len, parts))
        if not pairs:
            return torch.full_like(lse, -torch.inf, dtype=torch.float64)
        query = query.detach()
        if query.dtype not in (torch.float32, torch.float64):
            # what was computed in a narrow type proves nothing
            query = query.float()
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                lse = dense(query, parts, scale=scale, softcap=softcap).lse
        off = lse_error(query.flatten(0, 2), _largest(parts), pairs, scale=scale)
        least = (lse.detach().double() - off.view(lse.shape)).clamp(min=_LEAST)
        return torch.where(lse.isneginf(), -torch.inf, least)

    def prove(
        self,
        query: Float[Tensor, "queries dim"],
        lse: Float[Tensor, " queries"],
        floor: Float[Tensor, " queries"],
        parts: Sequence[tuple[Part, int]],
        kv_head: int,
        *,
        scale: float,
        softcap: float | None,
    ) -> Proof:
        """Masses of the clusters of all sorted parts, each with its line, for queries that have seen `lse`."""
        wide = lse.detach().double()
        reference = torch.where(wide.isfinite(), wide, 0.0)
        found, largest, pairs = [], 0.0, 0
        for part, line in parts:
            own = self._residuals.get(part.key)
            if own is None:
                own = self._residuals[part.key] = Residuals.of(part)
            given = (query, part, own, line, kv_head)
            found.append(masses(*given, scale=scale, softcap=softcap, reference=reference))
            largest = max(largest, largest_key(part, own, line, kv_head))
            pairs += len(part)
        both = Masses(*(torch.cat(of, 1) for of in zip(*found, strict=True)))
        off = lse_error(query, largest, pairs, scale=scale)
        # what was attended to in full has an error of its own
        off = torch.where(floor.isneginf(), off, torch.inf)
        return Proof(both, reference, (floor - reference).exp(), off)


def certify(
    query: Float[Tensor, "queries dim"],
    found: Partial,
    visited: Bool[Tensor, "queries clusters"],
    proof: Proof,
    *,
    most_missed: float,
    most_visited: int,
    visit: Callable[[Tensor, Int[Tensor, "some wanted"]], Partial],
    everything: Callable[[Tensor], Partial],
) -> tuple[Partial, Float[Tensor, " queries"]]:
    """`found` with more clusters visited where the bound is over `most_missed`, and the bounds.

    `everything` gives the answers of some queries (by number) over the whole memory.
    """
    output, lse = found
    visited = visited.clone()
    shares = proof.shares(lse.detach(), visited)
    order = proof.masses.upper.masked_fill(visited, -1.0).argsort(1, descending=True)
    counts = visited.sum(1)
    start, stop = 0, FIRST
    waiting = (shares > most_missed).nonzero()[:, 0]
    while len(waiting):
        is_full = counts[waiting] + stop > most_visited
        if is_full.any():
            own = waiting[is_full]
            every = everything(own)
            output, lse = output.index_copy(0, own, every.output), lse.index_copy(0, own, every.lse)
            shares[own], waiting = 0.0, waiting[~is_full]
            continue
        wanted = order[waiting, start:stop]
        more = visit(query[waiting], wanted)
        both = merge([Partial(output[waiting], lse[waiting]), more])
        output = output.index_copy(0, waiting, both.output)
        lse = lse.index_copy(0, waiting, both.lse)
        visited[waiting[:, None], wanted] = True
        shares[waiting] = _of(proof, waiting).shares(both.lse.detach(), visited[waiting])
        waiting = waiting[shares[waiting] > most_missed]
        start, stop = stop, 2 * stop
    return Partial(output, lse), shares


def first_of(
    ranks: Float[Tensor, "queries clusters"], counts: Int[Tensor, " queries"]
) -> Bool[Tensor, "queries clusters"]:
    """The clusters that every query has visited: so many of the best."""
    best = ranks.topk(int(counts.clamp(max=ranks.shape[1]).max()), dim=1).indices
    among = torch.arange(best.shape[1], device=ranks.device) < counts[:, None]
    return torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, best, among)


def _of(proof: Proof, queries: Tensor) -> Proof:
    own = Masses(*(of[queries] for of in proof.masses))
    return Proof(own, *(of[queries] for of in proof[1:]))


def _largest(parts: Sequence[Part]) -> float:
    """At least the norm of every key of some parts."""
    found = 0.0
    for part in parts:
        step = part.step()
        for start in range(0, len(part), step):
            keys = part.keys(start, min(start + step, len(part)), torch.float32)
            found = max(found, float(norm(keys.flatten(0, 2)).max()))
    return found * (1 + 2.0**-10)
