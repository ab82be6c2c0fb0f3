"""The paper as plain formulas: every score in one matrix, one softmax. Slow, obvious, the oracle of the tests."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    *,
    scale: float,
    valid: Bool[Tensor, "batch keys"] | None = None,
    bias: Float[Tensor, "#batch 1 query keys"] | None = None,
    causal: bool = False,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> tuple[Float[Tensor, "batch heads query dim"], Float[Tensor, "batch heads query"]]:
    """Output and log-sum-exp of softmax attention; a query that sees nothing has output 0 and lse -inf."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(
            1 + scores.shape[-1] - scores.shape[-2]
        )
        scores = scores.masked_fill(ahead, -torch.inf)
    if sinks is not None:
        # a score per head that has no value
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:-1], 1)], -1)
        value = torch.cat([value, torch.zeros_like(value[:, :, :1])], 2)
    sees_nothing = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(sees_nothing, 0.0)
    output = (scores.softmax(-1) @ value).masked_fill(sees_nothing, 0.0)
    return output, scores.logsumexp(-1).masked_fill(sees_nothing[..., 0], -torch.inf)


def top_k_valid(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    k: int,
) -> Bool[Tensor, "batch heads query keys"]:
    """Which keys are among the k with the largest inner product, for every query and query head."""
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT
    best = scores.topk(min(k, key.shape[2]), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, value=True)


def crossbatch(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch kv_heads length dim"],
    value: Float[Tensor, "batch kv_heads length dim"],
    plan: Int[Tensor, "batch contexts"],
    first_key: Float[Tensor, "batch kv_heads length dim"] | None = None,
    bias: Float[Tensor, "#batch 1 length length"] | None = None,
    valid: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch heads length dim"]:
    """Crossbatch attention by gathering all contexts of all rows: O(batch x contexts x length) space."""
    batch, _, length, dim = query.shape
    first_key = key if first_key is None else first_key
    listed = plan.clamp(min=0)
    contexts = plan.shape[1]

    def gathered(own: Tensor, shared: Tensor) -> Tensor:
        others = (
            shared[listed].transpose(1, 2).flatten(2, 3)
        )  # (batch, kv_heads, contexts * length, dim)
        return torch.cat([own, others], 2)

    seen = torch.ones(batch, length, dtype=torch.bool) if valid is None else valid
    seen = (seen[listed] & (plan >= 0)[..., None]).flatten(1)
    causal = torch.zeros(length, length).masked_fill(
        torch.ones(length, length).triu(1).bool(), -torch.inf
    )
    own_bias = causal.to(query) if bias is None else causal.to(query) + bias
    own_bias = own_bias.expand(batch, 1, length, length)
    full_bias = torch.cat([own_bias, query.new_zeros(batch, 1, length, contexts * length)], -1)
    visible = torch.cat([torch.ones(batch, length, dtype=torch.bool), seen], 1)
    output, _ = attention(
        query,
        gathered(key, first_key),
        gathered(value, value),
        scale=dim**-0.5,
        valid=visible,
        bias=full_bias,
    )
    return output
