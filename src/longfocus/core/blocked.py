"""Attention over one key set, block of keys by block of keys, with exact gradients.

Neither pass holds a full queries x keys matrix: the forward pass keeps a running softmax, the backward pass
computes the probabilities of each block again from the saved log-sum-exp. The softmax is computed in float32
(float64 for float64 inputs); products run in the type of the inputs, so that bfloat16 scores carry its rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores held at a time, in elements: 16 MiB of float32, small enough to stay near the cores of a CPU.
BLOCK_ELEMENTS = 2**22
# Elsewhere launching a block costs more than holding it.
DEVICE_BLOCK_ELEMENTS = 2**26
SMALLEST_BLOCK = 128


@dataclass(frozen=True)
class Scoring:
    """How scores are made from query . key; see `attend`. Keys are addressed by position in their set."""

    scale: float
    valid: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    softcap: float | None = None

    def scores(
        self, query: Tensor, key: Tensor, start: int, keys: int
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of folded queries (batch, kv_heads, groups, query, dim) with keys[start:], and capped ones' slope."""
        batch, kv_heads, groups, queries, dim = query.shape
        block = key.shape[2]
        flat = query.reshape(batch, kv_heads, groups * queries, dim)
        # float16 would overflow in products that float32 holds
        product = exact_dtype(query) if query.dtype == torch.float16 else query.dtype
        scores = (flat.to(product) @ key.to(product).mT).to(exact_dtype(query)).mul_(self.scale)
        scores = scores.view(batch, kv_heads, groups, queries, block)
        slope = None
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_()
            slope = 1 - scores.square()
            scores = scores * self.softcap
        if self.bias is not None:
            scores += self.bias[:, :, None, :, start : start + block]
        if self.valid is not None:
            scores.masked_fill_(~self.valid[:, None, None, None, start : start + block], -torch.inf)
        if self.causal:
            ahead = torch.arange(start, start + block, device=key.device) - (keys - queries)
            scores.masked_fill_(
                ahead > torch.arange(queries, device=key.device)[:, None], -torch.inf
            )
        return scores, slope


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which softmax is computed: float32, or float64 for float64 inputs."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def forward(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, dim) and lse (batch, heads, query) of attention over all keys."""
    folded = _fold(query, key.shape[1])
    keys = key.shape[2]
    exact = exact_dtype(query)
    output = torch.zeros(folded.shape[:-1] + value.shape[-1:], dtype=exact, device=query.device)
    total = output.new_zeros(folded.shape[:-1])
    largest = output.new_full(folded.shape[:-1], -torch.inf)
    for start, stop in _blocks(folded, keys):
        scores, _ = scoring.scores(folded, key[:, :, start:stop], start, keys)
        peak = torch.maximum(largest, scores.amax(-1))
        # nothing visible so far: any finite reference will do
        reference = torch.where(peak.isinf(), 0.0, peak)
        scores.sub_(reference[..., None]).exp_()
        shrink = (largest - reference).exp()
        total = total * shrink + scores.sum(-1)
        output = output * shrink[..., None] + _mix(scores, value[:, :, start:stop], query.dtype)
        largest = peak
    lse = torch.where(total > 0, largest + total.log(), -torch.inf)
    output = output / torch.where(total > 0, total, 1.0)[..., None]
    return _unfold(output), lse.flatten(1, 2)


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    lse: Tensor,
    grad_output: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, given lse and delta (batch, heads, query).

    The gradient of a score is p * (grad_output . value - delta) with p = exp(score - lse). With the lse and
    the delta of a union of key sets, this is the gradient of one softmax over the union.
    """
    folded, grad = _fold(query, key.shape[1]), _fold(grad_output.to(query.dtype), key.shape[1])
    grad_query = torch.zeros_like(folded, dtype=exact_dtype(query))
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    flat_query, flat_grad = folded.flatten(2, 3), grad.flatten(2, 3)
    for here, probability, pull in _pulls(folded, key, value, scoring, lse, grad, delta):
        grad_value[:, :, here] = probability.to(query.dtype).mT @ flat_grad
        grad_key[:, :, here] = pull.mT @ flat_query
        grad_query += (pull @ key[:, :, here].to(query.dtype)).view(grad_query.shape)
    return _unfold(grad_query).to(query.dtype), grad_key, grad_value


def backward_to_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    lse: Tensor,
    grad_output: Tensor,
    delta: Tensor,
) -> Tensor:
    """The first gradient of `backward`, without the cost of the others."""
    folded, grad = _fold(query, key.shape[1]), _fold(grad_output.to(query.dtype), key.shape[1])
    grad_query = torch.zeros_like(folded, dtype=exact_dtype(query))
    for here, _, pull in _pulls(folded, key, value, scoring, lse, grad, delta):
        grad_query += (pull @ key[:, :, here].to(query.dtype)).view(grad_query.shape)
    return _unfold(grad_query).to(query.dtype)


def _pulls(
    folded: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    lse: Tensor,
    grad: Tensor,
    delta: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Block by block: its place, and (batch, kv_heads, groups * query, block) probabilities and gradients of q . k."""
    shape = folded.shape[:-1]
    lse, delta = lse.reshape(shape), delta.reshape(shape).flatten(2, 3)[..., None]
    reference = torch.where(lse.isinf(), 0.0, lse)[..., None]
    flat_grad = grad.flatten(2, 3)
    for start, stop in _blocks(folded, key.shape[2]):
        scores, slope = scoring.scores(folded, key[:, :, start:stop], start, key.shape[2])
        probability = scores.sub_(reference).exp_().flatten(2, 3)
        pull = (flat_grad @ value[:, :, start:stop].to(folded.dtype).mT).to(probability.dtype)
        pull = pull.sub_(delta).mul_(probability)
        if slope is not None:
            pull.mul_(slope.flatten(2, 3))
        yield slice(start, stop), probability, pull.mul_(scoring.scale).to(folded.dtype)


def _fold(query: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, query, dim) -> (batch, kv_heads, groups, query, dim): heads that share their keys."""
    return query.unflatten(1, (kv_heads, query.shape[1] // kv_heads))


def _unfold(query: Tensor) -> Tensor:
    return query.flatten(1, 2)


def _mix(weights: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Weighted sums of values: (batch, kv_heads, groups, query, block) -> (..., dim), accumulated in float32."""
    dtype = weights.dtype if dtype == torch.float16 else dtype
    mixed = weights.flatten(2, 3).to(dtype) @ value.to(dtype)
    return mixed.view(*weights.shape[:-1], value.shape[-1]).to(weights.dtype)


def _blocks(folded: Tensor, keys: int) -> list[tuple[int, int]]:
    rows = max(folded.shape[:-1].numel(), 1)
    elements = BLOCK_ELEMENTS if folded.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    size = max(SMALLEST_BLOCK, elements // rows)
    return [(start, min(start + size, keys)) for start in range(0, keys, size)]
