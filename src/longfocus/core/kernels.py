"""Attention over one key set by the fastest of `fused` (CPU), `gpu` and `blocked`, forward and backward.

Both passes take the keys of one set; the backward pass may be given the output and log-sum-exp of a union of
sets instead, and then gives the gradients of one softmax over the union. That is how a set is never held twice,
and how sets of different kinds share one softmax (crossbatch).
"""

from typing import Any

import torch
from torch import Tensor

from longfocus.core import blocked, fused, gpu
from longfocus.core.blocked import Scoring


def forward(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, dim) and lse (batch, heads, query) of attention over all keys."""
    if fused.can_run(query, key, value, scoring):
        return fused.forward(query, key, value, scoring)
    with torch.autocast(query.device.type, enabled=False):
        if gpu.can_run(query, key, value, scoring):
            return gpu.forward(query, key, value, scoring)
        return blocked.forward(query, key, value, scoring)


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, given output and lse of these keys or of a union that holds them."""
    if grad_lse is None and fused.can_run(query, key, value, scoring) and fused.backward_wins(key):
        return fused.backward(query, key, value, scoring, output, lse, grad_output)
    delta = _delta(output, grad_output, grad_lse)
    return blocked.backward(query, key, value, scoring, lse, grad_output, delta)


def backward_to_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None = None,
) -> Tensor:
    """The first gradient of `backward`: for keys and values that take none, such as those of a memory."""
    # the fused kernel computes all three, and is still the faster one where it can run
    if grad_lse is None and fused.can_run(query, key, value, scoring) and fused.backward_wins(key):
        return fused.backward(query, key, value, scoring, output, lse, grad_output)[0]
    delta = _delta(output, grad_output, grad_lse)
    return blocked.backward_to_query(query, key, value, scoring, lse, grad_output, delta)


def _delta(output: Tensor, grad_output: Tensor, grad_lse: Tensor | None) -> Tensor:
    delta = (grad_output * output).sum(-1)
    # d lse / d score = p, so the gradient of the lse is one more term of the same form
    return delta if grad_lse is None else delta - grad_lse


class KeySetAttention(torch.autograd.Function):
    """(query, key, value, scoring) -> (output, lse), with gradients through both."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> tuple[Tensor, Tensor]:
        output, lse = forward(query, key, value, scoring)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.scoring = scoring
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        grad_output = torch.zeros_like(output) if grads[0] is None else grads[0]
        given = (query, key, value, ctx.scoring, output, lse, grad_output, grads[1])
        if any(ctx.needs_input_grad[1:3]):
            return *backward(*given), None
        return backward_to_query(*given), None, None, None
