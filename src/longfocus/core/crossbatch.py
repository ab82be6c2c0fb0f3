"""Crossbatch: training in which memory layers also attend to the windows of other rows (paper section 3.2).

    row b    own window, causal, keys rotated in place    |
             every token of row plan[b, 0]                |  one softmax
             every token of row plan[b, 1] ...            |
             keys as if at the window's first position    |

Gradients flow into the other rows' keys and values. One row is computed at a time, so that beside the inputs
only the keys of one row's contexts are held, never a [batch, contexts, length, heads, dim] copy.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longfocus.core import blocked
from longfocus.core.attention import Partial, attend, merge, under_autocast
from longfocus.core.blocked import Scoring
from longfocus.core.plans import NONE, check_plan


def crossbatch_attention(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch kv_heads length dim"],
    value: Float[Tensor, "batch kv_heads length dim"],
    plan: Int[Tensor, "batch contexts"],
    first_key: Float[Tensor, "batch kv_heads length dim"] | None = None,
    bias: Float[Tensor, "#batch 1 length length"] | None = None,
    valid: Bool[Tensor, "batch length"] | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads length dim"]:
    """One softmax over a row's own window (causal) and every real token of the rows that `plan` lists for it.

    `query` and `key` are rotated as in the window, `first_key` are the same keys as at the window's first
    position (default `key`). `bias` is added to the scores of the own window. `valid` marks the real tokens
    of each row as others see them; None is all of them, as published. `scale` is 1/sqrt(dim) unless given.
    """
    check_plan(plan, query.shape[0])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    own = attend(query, key, value, scale=scale, bias=bias, causal=True, softcap=softcap)
    others = attend_rows(
        query,
        key if first_key is None else first_key,
        value,
        plan,
        valid=valid,
        scale=scale,
        softcap=softcap,
    )
    return merge([own, others]).output.to(query.dtype)


def attend_rows(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    plan: Int[Tensor, "batch contexts"],
    *,
    valid: Bool[Tensor, "batch keys"] | None = None,
    scale: float,
    softcap: float | None = None,
) -> Partial:
    """The Partial of every row over all tokens of the rows that `plan` lists for it."""
    query, key, value = under_autocast(query, key, value)
    if valid is not None:
        valid = valid.to(key.device)
        # what padding holds may be NaN, and 0 times NaN is NaN
        key, value = (t.masked_fill(~valid[:, None, :, None], 0.0) for t in (key, value))
    contexts = [row[row != NONE] for row in plan.to(query.device, torch.long)]
    return Partial(
        *_AttendRows.apply(
            query, key, value, contexts, valid, Scoring(scale=scale, softcap=softcap)
        )
    )


class _AttendRows(torch.autograd.Function):
    """(query, key, value) -> (output, lse), row by row, with gradients into the listed rows."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        contexts: list[Tensor],
        valid: Tensor | None,
        scoring: Scoring,
    ) -> tuple[Tensor, Tensor]:
        exact = blocked.exact_dtype(query)
        output = torch.zeros(query.shape[:-1] + value.shape[-1:], dtype=exact, device=query.device)
        lse = output.new_full(query.shape[:-1], -torch.inf)
        with torch.autocast(query.device.type, enabled=False):
            for row, rows in enumerate(contexts):
                if len(rows):
                    own = slice(row, row + 1)
                    output[own], lse[own] = blocked.forward(
                        query[own],
                        _gather(key, rows),
                        _gather(value, rows),
                        _visible(scoring, valid, rows),
                    )
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.contexts, ctx.valid, ctx.scoring = contexts, valid, scoring
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        grad_output, grad_lse = grads
        delta = (grad_output * output).sum(-1) - grad_lse
        exact = blocked.exact_dtype(query)
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = (
            torch.zeros_like(key, dtype=exact),
            torch.zeros_like(value, dtype=exact),
        )
        for row, rows in enumerate(ctx.contexts):
            if len(rows):
                own = slice(row, row + 1)
                keys, values = _gather(key, rows), _gather(value, rows)
                seen = _visible(ctx.scoring, ctx.valid, rows)
                grad_query[own], to_keys, to_values = blocked.backward(
                    query[own], keys, values, seen, lse[own], grad_output[own], delta[own]
                )
                grad_key.index_add_(0, rows, _scatter(to_keys, len(rows)).to(exact))
                grad_value.index_add_(0, rows, _scatter(to_values, len(rows)).to(exact))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _gather(tensor: Tensor, rows: Tensor) -> Tensor:
    """The listed rows as one key set: (batch, heads, length, dim) -> (1, heads, rows * length, dim)."""
    return tensor[rows].transpose(0, 1).flatten(1, 2)[None]


def _scatter(tensor: Tensor, rows: int) -> Tensor:
    """The inverse of `_gather`: (1, heads, rows * length, dim) -> (rows, heads, length, dim)."""
    return tensor[0].unflatten(1, (rows, -1)).transpose(0, 1)


def _visible(scoring: Scoring, valid: Tensor | None, rows: Tensor) -> Scoring:
    if valid is None:
        return scoring
    return Scoring(scale=scoring.scale, softcap=scoring.softcap, valid=valid[rows].flatten()[None])
