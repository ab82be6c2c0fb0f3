"""The keys of a sorted part once more, in one byte per component: what bounds on their scores are made of.

A key of cluster c is mu + s r + e: centroid, scale times whole numbers of 8 bits, and what they leave over, of which
the norm is kept. See certificate.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from longfocus.memory.base import Part
from longfocus.memory.clusters import Clusters
from longfocus.memory.quantized import LARGEST

UNIT = 2.0**-24
"""Half the distance of float32 numbers at 1."""
ROUNDING = 16 * UNIT
"""More than the roundings that one score and its exp go through."""
SMALLEST = 2.0**-100
"""Numbers below are taken for zero, and what that changes is added; float32 may flush smaller ones."""
# Keys described at a time.
_BLOCK = 2**14


@dataclass(frozen=True)
class Residuals:
    """The keys of a sorted part once more, one byte per component, and how far that is off."""

    steps: Int8[Tensor, "lines kv_heads pairs dim"]
    scale: Float[Tensor, "lines kv_heads pairs"]
    """float32: key = centroid + scale * steps + something."""
    beyond: Float[Tensor, "lines kv_heads pairs"]
    """float32: at least the norm of that something."""
    farthest: Float[Tensor, "lines kv_heads clusters"]
    """float64: at least the norm of scale * steps, of all keys of a cluster."""
    most_beyond: Float[Tensor, "lines kv_heads clusters"]
    """float64: the largest `beyond` of a cluster."""

    @classmethod
    def of(cls, part: Part) -> "Residuals":
        """Residuals of all pairs of a part sorted by clusters; `dim` + 8 bytes for each of them."""
        part.verify()
        clusters = clusters_of(part)
        lines, kv_heads, pairs, dim = part.key.shape
        made = cls(
            part.key.new_zeros(lines, kv_heads, pairs, dim, dtype=torch.int8),
            *(part.key.new_zeros(lines, kv_heads, pairs, dtype=torch.float32) for _ in range(2)),
            *(torch.zeros_like(clusters.spread, dtype=torch.float64) for _ in range(2)),
        )
        for line in range(lines):
            for kv_head in range(kv_heads):
                made._fill(part, clusters, line, kv_head)
        return made

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.steps, self.scale, self.beyond))

    def _fill(self, part: Part, clusters: Clusters, line: int, kv_head: int) -> None:
        own = (line, kv_head)
        sizes = clusters.sizes[own]
        nearest = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        for start in range(0, len(nearest), _BLOCK):
            here = slice(start, min(start + _BLOCK, len(nearest)))
            cluster = nearest[here]
            found = _describe(
                _exact_keys(part, own, here), clusters.centroids[own][cluster].double()
            )
            self.steps[own][here] = found.steps
            self.scale[own][here] = found.scale
            self.beyond[own][here] = found.beyond
            for most, each in (
                (self.farthest, found.size),
                (self.most_beyond, found.beyond.double()),
            ):
                most[own].scatter_reduce_(0, cluster, each, "amax")


class _Described(NamedTuple):
    steps: Tensor
    scale: Tensor
    beyond: Tensor
    size: Tensor


def _describe(keys: Tensor, centroids: Tensor) -> _Described:
    """Fields of `Residuals` for some keys and their centroids, both in float64."""
    rest = keys - centroids
    scale = (rest.abs().amax(1) / LARGEST).float()
    scale = torch.where(scale > SMALLEST, scale, 0.0)
    wide = scale.double()[:, None]
    steps = (rest / torch.where(wide > 0, wide, 1.0)).round_().clamp_(-LARGEST, LARGEST)
    steps = torch.where((wide > 0) & steps.isfinite(), steps, 0.0)
    left = rest - steps * wide
    # float64 rounds too: the subtraction above, and sums of squares that underflow
    lost = 2.0**-45 * (norm(keys) + norm(centroids) + norm(rest)) + SMALLEST
    beyond = rounded_up(norm(left) * (1 + ROUNDING) + lost)
    size = scale.double() * norm(steps) * (1 + ROUNDING)
    return _Described(steps.to(torch.int8), scale, beyond, size)


def largest_key(part: Part, residuals: Residuals, line: int, kv_head: int) -> float:
    """At least the norm of every key of a line and KV head."""
    own = (line, kv_head)
    centres = norm(clusters_of(part).centroids[own].double())
    norms = centres + residuals.farthest[own] + residuals.most_beyond[own]
    return float(norms.max()) * (1 + ROUNDING)


def clusters_of(part: Part) -> Clusters:
    assert part.clusters is not None, "only parts that are sorted by clusters have residuals"
    return part.clusters


def _exact_keys(part: Part, own: tuple[int, int], here: slice) -> Float[Tensor, "some dim"]:
    keys = part.key[own][here].double()
    return keys if part.scales is None else keys * part.scales.key[own][here, None].double()


def norm(vectors: Float[Tensor, "some dim"]) -> Float[Tensor, " some"]:
    return torch.linalg.vector_norm(vectors, dim=-1)


def rounded_up(numbers: Tensor) -> Tensor:
    """float32 numbers that are no smaller."""
    narrow = numbers.float()
    return torch.nextafter(narrow, narrow.new_tensor(torch.inf))
