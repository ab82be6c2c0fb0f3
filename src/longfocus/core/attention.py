"""Attention over a union of key sets is a merge of attentions over the sets.

    Partial(output, lse)       the answer of one key set and the log-sum-exp of its scores
    attend(query, keys, ...)   -> Partial
    merge(partials)            -> Partial: associative, commutative, exact

The local window, a memory, a document, the other rows of a crossbatch: each yields a Partial, and one
softmax over all of them (paper section 3.1) is their merge. What is fast here is in `kernels`;
`reference` holds the same as plain formulas.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.core import blocked, kernels
from longfocus.core.blocked import Scoring


class Partial(NamedTuple):
    """What attention over one key set says, in a form that can be merged with other sets."""

    output: Float[Tensor, "batch heads query dim"]
    """Softmax-weighted mean of the values, in float32 or better; zero where no key is visible."""
    lse: Float[Tensor, "batch heads query"]
    """Log-sum-exp of the scores; -inf where no key is visible."""


def attend(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    *,
    scale: float,
    valid: Bool[Tensor, "batch keys"] | None = None,
    bias: Float[Tensor, "#batch 1 query keys"] | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> Partial:
    """Softmax attention of every query over one set of keys.

    `valid` marks keys that exist, `bias` is added to the scores, `causal` aligns the last query with the last
    key, `softcap` bounds scores to +-softcap by tanh before the bias. Query heads share key heads in groups.
    Extra space is linear in queries + keys. Differentiable in query, key and value.
    """
    scoring = Scoring(scale=scale, valid=valid, bias=bias, causal=causal, softcap=softcap)
    query, key, value = under_autocast(query, key, value)
    if key.shape[2] == 0:
        return nothing(query)
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        return Partial(*kernels.KeySetAttention.apply(query, key, value, scoring))
    return Partial(*kernels.forward(query, key, value, scoring))


def merge(partials: Sequence[Partial]) -> Partial:
    """Attention over the union of disjoint key sets, from the attention over each of them."""
    if len(partials) == 1:
        return partials[0]
    lse = torch.stack([partial.lse for partial in partials])
    largest = lse.detach().amax(0)
    largest = torch.where(largest.isinf(), 0.0, largest)
    mass = (lse - largest).exp()
    total = mass.sum(0)
    # a query that sees no key at all keeps output 0 and lse -inf, with gradients 0
    safe = torch.where(total > 0, total, 1.0)
    share = mass / safe
    output = partials[0].output * share[0, ..., None]
    for partial, own in zip(partials[1:], share[1:], strict=True):
        output = output + partial.output * own[..., None]
    return Partial(output, torch.where(total > 0, largest + safe.log(), -torch.inf))


def gate(local: Partial, memory: Partial, logit: Float[Tensor, " heads"]) -> Partial:
    """The Memorizing Transformer's mixture g * memory + (1 - g) * local with g = sigmoid(logit) per head.

    Where the memory is empty the local answer stands alone. The lse is that of the union.
    """
    share = logit.to(local.output).sigmoid()[:, None]
    share = torch.where(memory.lse.isinf(), 0.0, share)[..., None]
    mixed = share * memory.output + (1 - share) * local.output
    return Partial(mixed, merge([local, memory]).lse)


def sink(local: Partial, logit: Float[Tensor, " heads"]) -> Partial:
    """Add one learned score per head that takes attention and gives nothing (gpt-oss)."""
    lse = logit.to(local.lse)[:, None].expand_as(local.lse)
    return merge([local, Partial(torch.zeros_like(local.output), lse)])


def nothing(query: Float[Tensor, "batch heads query dim"]) -> Partial:
    """The Partial of an empty key set."""
    exact = blocked.exact_dtype(query)
    return Partial(
        torch.zeros_like(query, dtype=exact),
        query.new_full(query.shape[:-1], -torch.inf, dtype=exact),
    )


def under_autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Autocast treats this like torch's own scaled_dot_product_attention: in the autocast type, but for float64."""
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value
