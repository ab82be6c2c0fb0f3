"""Clusters of keys: pairs that lie sorted by them, so that a query reads few of them and misses little.

    train(sample)           k-means: centroids
    assign(keys, centroids) the nearest centroid of every key
    Clusters                what a part knows that is sorted by them (sorting.py)

Attention keeps far more of its mass on all pairs of a few near clusters than on as many single best keys
(docs/speed.md), and clusters are read as runs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.core.processor import multiplies

SAMPLES = 32
"""Keys per cluster that clusters are trained on."""
ITERATIONS = 6
_SEED = 20230706
# Scores of keys against centroids that are held at a time: near the core of a CPU.
_SCORES = 2**20


@dataclass(frozen=True)
class Clusters:
    """Which pairs of a part lie together, and what their keys are like; per line and KV head."""

    centroids: Float[Tensor, "lines kv_heads clusters dim"]
    """Means of the keys, in float32."""
    spread: Float[Tensor, "lines kv_heads clusters"]
    """Mean squared distance of the keys from their centroid."""
    starts: Int[Tensor, "lines kv_heads clusters+1"]
    """First pair of every cluster, and the end of the last one; padding lies behind it."""
    order: Int[Tensor, "lines kv_heads pairs"]
    """Place that a pair had before it was sorted."""

    def __len__(self) -> int:
        return self.centroids.shape[2]

    def log_mass(
        self, query: Float[Tensor, "queries dim"], line: int, kv_head: int
    ) -> Float[Tensor, "queries clusters"]:
        """What a query (already scaled) may expect of every cluster: the log of the sum of exp(query . key).

        Keys are taken for Gaussian around their centroid: query . centroid + |query|^2 spread / (2 dim) + ln n.
        Empty clusters have -inf.
        """
        query = query.to(self.centroids)
        expected = query @ self.centroids[line, kv_head].mT
        size = query.square().sum(-1, keepdim=True) / (2 * query.shape[1])
        return expected.addcmul_(size, self.spread[line, kv_head]).add_(
            self._log_sizes[line, kv_head]
        )

    @cached_property
    def sizes(self) -> Int[Tensor, "lines kv_heads clusters"]:
        """Pairs in every cluster."""
        return self.starts.diff(dim=-1)

    @cached_property
    def places(self) -> Int[Tensor, "lines kv_heads pairs"]:
        """Where the pair lies now that had a place before: the inverse of `order`."""
        return self.order.argsort(-1)

    @cached_property
    def _log_sizes(self) -> Tensor:
        return self.sizes.to(self.centroids.dtype).log()

    def to(self, device: torch.device) -> "Clusters":
        found = (self.centroids, self.spread, self.starts, self.order)
        return Clusters(*(tensor.to(device) for tensor in found))


def count_for(pairs: int) -> int:
    """How many clusters suit so many pairs: the power of two next to their root (docs/speed.md)."""
    return 2 ** max(0, round(math.log2(max(pairs, 1)) / 2))


def sample_of(pairs: int, clusters: int) -> Int[Tensor, " some"]:
    """Which of so many keys to train on, in random order; the same every time."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randperm(pairs, generator=generator)[: SAMPLES * clusters]


def train(sample: Float[Tensor, "some dim"], clusters: int) -> Float[Tensor, "clusters dim"]:
    """Centroids by k-means; equal samples give equal ones."""
    if not len(sample):
        return torch.zeros(clusters, sample.shape[1], dtype=torch.float32, device=sample.device)
    generator = torch.Generator().manual_seed(_SEED)
    centroids = sample[torch.arange(clusters) % len(sample)].float()
    for _ in range(ITERATIONS):
        found = Description(clusters, sample.shape[1], sample.device)
        found.add(sample, assign(sample, centroids))
        # an empty cluster begins anew at some key
        others = torch.randint(len(sample), (clusters,), generator=generator).to(sample.device)
        centroids, _ = found.means_and_spread(sample[others].float())
    return centroids


def assign(
    keys: Float[Tensor, "pairs dim"], centroids: Float[Tensor, "clusters dim"]
) -> Int[Tensor, " pairs"]:
    """The nearest centroid of every key."""
    is_narrow = keys.dtype == torch.bfloat16 and multiplies(keys.dtype, keys.device)
    product = torch.bfloat16 if is_narrow else torch.float32
    offset = centroids.square().sum(-1) / 2
    table = centroids.to(product).T.contiguous()
    step = max(1, _SCORES // len(centroids))
    # max() gives the place too, and is much faster than argmax() here
    found = [
        (some.to(product) @ table).float().sub_(offset).max(-1).indices for some in keys.split(step)
    ]
    return torch.cat(found)


class Description:
    """Means, spreads and sizes of clusters, from their keys a few at a time, or from what is known of some."""

    def __init__(self, clusters: int, dim: int, device: torch.device) -> None:
        # one more for padding
        self._sums = torch.zeros(clusters + 1, dim, dtype=torch.float32, device=device)
        self._squares = torch.zeros(clusters + 1, dtype=torch.float32, device=device)
        self._sizes = torch.zeros(clusters + 1, dtype=torch.long, device=device)

    def add(self, keys: Float[Tensor, "pairs dim"], nearest: Int[Tensor, " pairs"]) -> None:
        """Keys and their clusters; those of padding are past the last cluster."""
        wide = keys.float()
        self._sums.index_add_(0, nearest, wide)
        self._squares.index_add_(0, nearest, wide.square().sum(-1))
        self._sizes += torch.bincount(nearest, minlength=len(self._sizes))

    def add_known(self, centroids: Tensor, spread: Tensor, sizes: Tensor) -> None:
        """Clusters described before."""
        self._sums[:-1] += centroids * sizes[:, None]
        self._squares[:-1] += (spread + centroids.square().sum(-1)) * sizes
        self._sizes[:-1] += sizes

    @property
    def sizes(self) -> Int[Tensor, " clusters"]:
        return self._sizes[:-1]

    def means_and_spread(self, otherwise: Float[Tensor, "clusters dim"]) -> tuple[Tensor, Tensor]:
        """Means `[clusters, dim]` (of empty clusters: `otherwise`) and mean squared distances from them."""
        least = self.sizes.clamp(min=1)
        means = self._sums[:-1] / least[:, None]
        spread = self._squares[:-1] / least - means.square().sum(-1)
        return torch.where(self.sizes[:, None] > 0, means, otherwise), spread.clamp_(min=0)
