"""A proven upper bound on the share of attention that a clustered search missed, for every query.

    Residuals       every key again, as its centroid and 8 bits per component (residuals.py)
    masses          bounds on the attention mass of every cluster, by one scan over the residuals
    missed_share    from the masses: what clusters that were not visited hold at most, against what was seen at least

A key k of cluster c is mu + s r + e (residuals.py), so that q.k lies within |q||e| of q.mu + s (q.r), and exp of it is
summed. Everything that is rounded on the way is bounded too: u = 2^-24 is half the distance of float32 numbers at 1,
and a sum of n terms is off by no more than gamma(n) = n u / (1 - n u) of the sum of their sizes. The truth is attention
over the stored keys (int8 ones times their scale) in exact arithmetic. A bound that cannot be given, where numbers
overflow, is 1.

Clusters are far wider than what 8 bits leave over: a bound by distance to the centroid says nothing (docs/speed.md).
"""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.memory.base import Part
from longfocus.memory.quantized import LARGEST
from longfocus.memory.residuals import (
    ROUNDING,
    SMALLEST,
    UNIT,
    Residuals,
    clusters_of,
    largest_key,
    norm,
    rounded_up,
)

# Two digits of a query: unit * (254 high + low), low within +-127.
_DIGIT = 2 * LARGEST
# Scores held at a time; queries scored at a time.
_SCORES, _QUERIES = 2**18, 64
# Scores below are taken for it.
_LEAST = -80.0


class Masses(NamedTuple):
    """Bounds on the sum of exp(score - reference) of every cluster, in float64; `upper` may be infinite."""

    lower: Float[Tensor, "queries clusters"]
    upper: Float[Tensor, "queries clusters"]


def masses(
    query: Float[Tensor, "queries dim"],
    part: Part,
    residuals: Residuals,
    line: int,
    kv_head: int,
    *,
    scale: float,
    softcap: float | None = None,
    reference: Float[Tensor, " queries"],
) -> Masses:
    """Bounds on exp(score - reference) summed over every cluster of one line and KV head.

    Queries are given as they are, in any type. Cost: one product of 8-bit integers with all keys of the part.
    """
    reference = reference.double()
    wide = query.detach().double() * scale
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        found = [
            _Scan(some, part, residuals, line, kv_head, softcap, origin).masses()
            for some, origin in zip(wide.split(_QUERIES), reference.split(_QUERIES), strict=True)
        ]
    return Masses(*(torch.cat(of) for of in zip(*found, strict=True)))


class _Scan:
    """One scan over the residuals for a few queries (float64, already scaled)."""

    def __init__(
        self,
        query: Tensor,
        part: Part,
        residuals: Residuals,
        line: int,
        kv_head: int,
        softcap: float | None,
        reference: Tensor,
    ) -> None:
        own = (line, kv_head)
        self.residuals, self.own, self.softcap = residuals, own, softcap
        self.clusters = clusters_of(part)
        dim = query.shape[1]
        centroids = self.clusters.centroids[own].double()
        self.sizes = self.clusters.sizes[own]
        length = norm(query) * (1 + ROUNDING)
        self.length = rounded_up(length)
        digits = (query.abs().amax(1) / (LARGEST * _DIGIT)).float()
        digits = torch.where(digits > SMALLEST, digits, 0.0)
        self.unit = digits
        unit = digits.double()[:, None]
        most = LARGEST * _DIGIT
        whole = (query / torch.where(unit > 0, unit, 1.0)).round_().clamp_(-most, most)
        whole = torch.where((unit > 0) & whole.isfinite(), whole, 0.0)
        high = (whole / _DIGIT).round()
        # (dim, high digits of all queries, then their low digits)
        self.digits = torch.cat([high, whole - _DIGIT * high]).to(torch.int8).T.contiguous()
        left = norm(query - whole * unit) * (1 + ROUNDING)

        farthest, most_beyond = residuals.farthest[own], residuals.most_beyond[own]
        expected = query @ centroids.T
        origin = torch.zeros_like(reference) if softcap is not None else reference
        base = expected - origin[:, None]
        # what is rounded: float64 in q.mu, digits of the query, then float32 from here to exp
        products = length[:, None] * farthest
        slack = 2.0**-52 * (dim + 8) * length[:, None] * (norm(centroids) + farthest + most_beyond)
        slack += left[:, None] * farthest + SMALLEST
        slack += ROUNDING * (base.abs() + 1.5 * products + length[:, None] * most_beyond)
        self.base = rounded_up(base + slack).T.contiguous()  # (clusters, queries)
        self.width = 2 * length[:, None] * most_beyond * (1 + ROUNDING) + 3 * slack
        self.shift = torch.zeros_like(reference)
        if softcap is not None:
            capped = ROUNDING * (softcap + reference.abs())
            self.shift = capped - reference
            self.width += 3 * capped[:, None]

    def masses(self) -> Masses:
        found = torch.zeros(self.base.shape, dtype=torch.float64, device=self.base.device)
        starts = self.clusters.starts[self.own]
        pairs, step = int(starts[-1]), max(_SCORES // self.base.shape[1], 2**12)
        for start in range(0, pairs, step):
            stop = min(start + step, pairs)
            lengths = starts.clamp(start, stop).diff()
            seen = lengths.nonzero()[:, 0]
            few = lengths[seen]
            cluster = seen.repeat_interleave(few)
            # exp is slow where it underflows; what this adds is far below SMALLEST
            weights = self._scores(slice(start, stop), cluster).clamp_(min=_LEAST).exp_()
            own = torch.arange(len(seen), device=seen.device).repeat_interleave(few)
            sums = weights.new_zeros(len(seen), weights.shape[1]).index_add_(0, own, weights)
            found[seen] += sums.double()
        return self._bounds(found.T)

    def _scores(self, here: slice, cluster: Tensor) -> Float[Tensor, "pairs queries"]:
        """Upper bounds on score - reference."""
        own, queries = self.own, len(self.unit)
        products = _products(self.residuals.steps[own][here], self.digits)
        scores = products[:, :queries].float().mul_(_DIGIT).add_(products[:, queries:])
        scores *= self.residuals.scale[own][here, None]
        scores *= self.unit
        scores += self.base.index_select(0, cluster)
        scores.addcmul_(self.residuals.beyond[own][here, None], self.length)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
            scores += rounded_up(self.shift)
        return scores

    def _bounds(self, sums: Float[Tensor, "queries clusters"]) -> Masses:
        """From sums of exp of upper bounds in float32; a sum of 2^22 or more terms is not trusted."""
        terms = self.sizes.double()
        off = 2 * UNIT * (terms + 8) + 2 * ROUNDING
        known = off < 0.5
        tiny = terms * SMALLEST
        upper = torch.where(known, sums / (1 - off.clamp(max=0.5)) + tiny, torch.inf)
        upper = torch.where(upper.isnan(), torch.inf, upper)
        lower = (sums / (1 + off) - tiny).clamp(min=0) * (-self.width).exp()
        lower = torch.where(known & sums.isfinite() & self.width.isfinite(), lower, 0.0)
        has_none = terms == 0
        return Masses(lower.masked_fill(has_none, 0.0), upper.masked_fill(has_none, 0.0))


def missed_share(
    found: Masses,
    visited: Bool[Tensor, "queries clusters"],
    seen: Float[Tensor, " queries"] | None = None,
) -> Float[Tensor, " queries"]:
    """At most so much of the attention on all clusters (and all else) fell on clusters not visited; in float64.

    `seen` is a lower bound, as multiples of exp(reference), on all mass that was attended to, if one is known that may
    be better than that of the visited clusters alone.
    """
    missed = found.upper.masked_fill(visited, 0.0).sum(1)
    least = found.lower.masked_fill(~visited, 0.0).sum(1)
    if seen is not None:
        least = torch.maximum(least, torch.where(seen.isfinite(), seen, 0.0))
    share = missed / (missed + least) * (1 + 2.0**-40)
    share = torch.where(share.isnan(), 1.0, share).clamp(max=1.0)
    return torch.where(missed > 0, share, 0.0)


def bound(
    query: Float[Tensor, "queries dim"],
    part: Part,
    residuals: Residuals,
    visited_lse: Float[Tensor, " queries"],
    visited: Bool[Tensor, "queries clusters"],
    *,
    scale: float,
    softcap: float | None = None,
    line: int = 0,
    kv_head: int = 0,
) -> Float[Tensor, " queries"]:
    """At most so much of every query's attention on one line and KV head fell on clusters that it did not visit.

    `visited_lse` is what the search computed for those that it did; its own rounding is taken off.
    """
    lse = visited_lse.double()
    reference = torch.where(lse.isfinite(), lse, 0.0)
    given = {"scale": scale, "softcap": softcap, "reference": reference}
    found = masses(query, part, residuals, line, kv_head, **given)
    off = lse_error(query, largest_key(part, residuals, line, kv_head), len(part), scale=scale)
    return missed_share(found, visited, (lse - reference - off).exp())


def lse_error(
    query: Float[Tensor, "queries dim"], largest: float, pairs: int, *, scale: float
) -> Float[Tensor, " queries"]:
    """How far a log-sum-exp that attention computed over so many keys may be off; infinite where nobody can say.

    Products of narrow types may be rounded to them, and so may those of float32 where torch is allowed to.
    """
    length = norm(query.detach().double())
    is_full = query.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    if query.dtype not in (torch.float32, torch.float64) or not is_full or pairs > 2**21:
        return torch.full_like(length, torch.inf)
    scores = 2 * (query.shape[1] + 8) * UNIT * abs(scale) * length * largest
    # the sum, exp to 2^-18, and the log, whose size is that of the largest score and the number of keys
    rest = 2 * UNIT * (pairs + 8) + 2.0**-18
    return scores + rest + ROUNDING * (abs(scale) * length * largest + 22)


def _products(steps: Tensor, digits: Tensor) -> Tensor:
    """Exact products of 8-bit integers `[pairs, dim] @ [dim, columns]`, as whole numbers."""
    if steps.device.type == "cpu" and _is_exact_here():
        return torch._int_mm(steps, digits)
    # whole numbers up to 127 are exact in every float type, and so are their sums in float32
    return steps.float() @ digits.float()


@cache
def _is_exact_here() -> bool:
    """Whether this processor multiplies 8-bit integers without saturating sums of 16 bits, as some do."""
    steps = torch.full((64, 128), LARGEST, dtype=torch.int8)
    found = [torch._int_mm(sign * steps, (sign * steps[:2]).T.contiguous()) for sign in (1, -1)]
    return all(bool((some == 128 * LARGEST**2).all()) for some in found)
