"""Memories and queries that a bound on missed attention must hold on, and the truth in float64."""

from typing import Any

import torch
from torch import Tensor

from longfocus.memory import Part
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

KINDS = (
    "clustered",
    "isotropic",
    "equal",
    "zeros",
    "huge",
    "tiny",
    "subnormal",
    "outlier",
    "antiparallel",
    "one token",
    "spikes",
)
TYPES = ("float32", "bfloat16", "float16", "float64", "int8")
DIMS = (64, 80, 100, 128)


def keys_of(kind: str, pairs: int, dim: int) -> Tensor:
    """Keys `[1, 2, pairs, dim]` in float64."""
    pairs = 1 if kind == "one token" else pairs
    noise = torch.randn(1, 2, pairs, dim, dtype=torch.float64)
    centres = 2 * torch.randn(16, dim, dtype=torch.float64)
    own = centres[torch.randint(16, (1, 2, pairs))]
    sign = torch.where(torch.rand(1, 2, pairs, 1) < 0.5, -1.0, 1.0).double()
    outlier = noise.clone()
    outlier[:, :, 0] *= 1000
    spikes = 0.01 * noise
    spikes[..., 3] = 50 * sign[..., 0]
    return {
        "clustered": own + 0.5 * noise,
        "isotropic": noise,
        "equal": noise[:, :, :1].expand_as(noise).clone(),
        "zeros": torch.zeros_like(noise),
        "huge": 1e4 * own + noise,
        "tiny": 1e-5 * noise,
        "subnormal": 1e-42 * noise,
        "outlier": outlier,
        "antiparallel": sign * own + 0.01 * noise,
        "one token": noise,
        "spikes": spikes,
    }[kind]


def memory(kind: str, number: str, pairs: int, dim: int, clusters: int) -> Part:
    """A sorted part of keys of such a kind, kept as such numbers."""
    key = keys_of(kind, pairs, dim)
    value = torch.randn_like(key)
    if number == "int8":
        (steps, by_key), (narrow, by_value) = quantize(key), quantize(value)
        return cluster(Part(steps, narrow, scales=Scales(by_key, by_value)), clusters)
    dtype = getattr(torch, number)
    if number == "float16":
        key = key.clamp(-6e4, 6e4)
    return cluster(Part(key.to(dtype), value.to(dtype)), clusters)


def queries_for(part: Part, kind: str, count: int, dtype: torch.dtype) -> Tensor:
    """Queries `[count, dim]` of one KV head, some of them along keys or against them, one of zeros."""
    key = part.own_keys(0, 0, slice(None)).double()
    query = torch.randn(count, key.shape[1], dtype=torch.float64)
    if kind in ("along", "against"):
        picked = key[torch.randint(len(key), (count,))]
        size = torch.linalg.vector_norm(picked, dim=1, keepdim=True).clamp(min=1e-30)
        query += (20 if kind == "along" else -20) * picked / size
    query = {"far": 1e4, "tiny": 1e-4, "smallest": 1e-40}.get(kind, 1.0) * query
    query[0] = 0
    return query.to(dtype)


def true_scores(query: Tensor, part: Part, scale: float, softcap: float | None) -> Tensor:
    """Scores `[queries, pairs]` of line 0, KV head 0, in float64."""
    key = part.key[0, 0].double()
    if part.scales is not None:
        key = key * part.scales.key[0, 0, :, None].double()
    scores = scale * query.double() @ key.T
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def cluster_of(part: Part) -> Tensor:
    """The cluster of every pair of line 0, KV head 0."""
    assert part.clusters is not None
    sizes = part.clusters.sizes[0, 0]
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def by_cluster(scores: Tensor, part: Part) -> Tensor:
    """Log masses `[queries, clusters]`."""
    assert part.clusters is not None
    own = cluster_of(part)
    found: list[Any] = [
        scores[:, own == number].logsumexp(1) for number in range(len(part.clusters))
    ]
    return torch.stack(found, 1)


def missed(logs: Tensor, visited: Tensor) -> Tensor:
    """The true share of mass on clusters not visited."""
    rest = logs.masked_fill(visited, -torch.inf).logsumexp(1)
    return (rest - logs.logsumexp(1)).exp()
