"""Exact top-k search: the k keys with the largest inner product, per query and query head (paper section 3.1).

The k are the best of all parts together: each part answers with its own best k, and the best of those are kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.core.attention import Partial, merge, nothing
from longfocus.core.blocked import exact_dtype
from longfocus.memory.base import Hits, Part

# Gathered key and value components held at a time.
GATHER_ELEMENTS = 2**25


def exact(
    query: Float[Tensor, "batch heads query dim"],
    parts: Sequence[Part],
    *,
    scale: float,
    softcap: float | None = None,
    top_k: int = 128,
) -> Partial:
    """Attention over the `top_k` best pairs of all parts together (all of them if there are fewer).

    The choice itself has no gradient; queries, chosen keys and chosen values have.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return nothing(query)
    each = query.shape[0] * query.shape[1] * top_k * query.shape[3]
    step = max(1, GATHER_ELEMENTS // each)
    chunks = [_top_k(chunk, parts, scale, softcap, top_k) for chunk in query.split(step, dim=2)]
    return Partial(torch.cat([c.output for c in chunks], 2), torch.cat([c.lse for c in chunks], 2))


def _top_k(
    query: Tensor, parts: Sequence[Part], scale: float, softcap: float | None, top_k: int
) -> Partial:
    found = [part.search(query, top_k, scale=scale) for part in parts]
    partials = []
    for part, hits, chosen in zip(parts, found, best_of_all(found, top_k), strict=True):
        key, value = part.take(hits.positions, exact_dtype(query))
        partials.append(attend_own(query, key, value, chosen, scale=scale, softcap=softcap))
    return merge(partials)


def best_of_all(found: Sequence[Hits], top_k: int) -> list[Bool[Tensor, "batch heads query k"]]:
    """Which hits of every part are among the `top_k` best of all parts together."""
    scores = torch.cat([hits.scores for hits in found], -1)
    best = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    is_chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best.indices, value=True)
    is_chosen &= ~scores.isneginf()
    return list(is_chosen.split([hits.scores.shape[-1] for hits in found], -1))


def attend_own(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch heads query k dim"],
    value: Float[Tensor, "batch heads query k dim"],
    visible: Bool[Tensor, "batch heads query k"],
    *,
    scale: float,
    softcap: float | None = None,
) -> Partial:
    """Attention in which every query has its own k keys."""
    with torch.autocast(query.device.type, enabled=False):
        return _attend_own(query, key, value, visible, scale, softcap)


def _attend_own(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, softcap: float | None
) -> Partial:
    wide = exact_dtype(query)
    scores = (key.to(wide) @ query.to(wide)[..., None])[..., 0] * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    peak = scores.detach().amax(-1, keepdim=True)
    weights = (scores - torch.where(peak.isinf(), 0.0, peak)).exp()
    total = weights.sum(-1, keepdim=True)
    safe = torch.where(total > 0, total, 1.0)
    output = ((weights / safe)[..., None, :] @ value.to(wide))[..., 0, :]
    lse = torch.where(total > 0, peak + safe.log(), -torch.inf)[..., 0]
    return Partial(output, lse)
