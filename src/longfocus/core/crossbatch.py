"""Crossbatch: training in which memory layers also attend to the windows of other rows (paper section 3.2).

    row b    own window, causal, keys rotated in place    |
             every token of row plan[b, 0]                |  one softmax
             every token of row plan[b, 1] ...            |
             keys as if at the window's first position    |

Gradients flow into the other rows' keys and values. Rows are computed in chunks that list no more rows together
than the batch has, so that beside the inputs never more than one copy of its keys and values is held: space is
O(batch x length), whatever the number of contexts.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longfocus.core import blocked, kernels
from longfocus.core.attention import Partial, merge, sink, under_autocast
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
    pool = Pool(key if first_key is None else first_key, value, valid)
    own = Scoring(scale=scale, bias=bias, causal=True, softcap=softcap)
    return attend_jointly(query, key, value, pool, plan, own)


class Pool(NamedTuple):
    """The windows that a plan lists by number: those of the batch, or of the batches of all ranks."""

    key: Float[Tensor, "rows kv_heads length dim"]
    """As at the window's first position."""
    value: Float[Tensor, "rows kv_heads length dim"]
    valid: Bool[Tensor, "rows length"] | None = None
    """Real tokens as others see them; None is all."""


def attend_jointly(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch kv_heads length dim"],
    value: Float[Tensor, "batch kv_heads length dim"],
    pool: Pool,
    plan: Int[Tensor, "batch contexts"],
    own: Scoring,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads length dim"]:
    """One softmax over each row's own window, scored by `own`, and the rows of `pool` that `plan` lists for it.

    `sinks` are scores per head that take attention and give nothing (gpt-oss).
    """
    wide = query.dtype
    query, key, value = under_autocast(query, key, value)
    pool = _ready(pool, query)
    others = Scoring(scale=own.scale, softcap=own.softcap, valid=pool.valid)
    output = _AttendJointly.apply(
        query, key, value, pool.key, pool.value, sinks, _Contexts(plan, query.device), own, others
    )
    return output.to(wide)


def attend_rows(
    query: Float[Tensor, "batch heads length dim"],
    pool: Pool,
    plan: Int[Tensor, "batch contexts"],
    *,
    scale: float,
    softcap: float | None = None,
) -> Partial:
    """The Partial of every row over all tokens of the rows of `pool` that `plan` lists for it."""
    pool = _ready(pool, query)
    query, key, value = under_autocast(query, pool.key, pool.value)
    scoring = Scoring(scale=scale, softcap=softcap, valid=pool.valid)
    return Partial(*_AttendRows.apply(query, key, value, _Contexts(plan, query.device), scoring))


def _ready(pool: Pool, query: Tensor) -> Pool:
    """In the type of autocast, and zero where padding stands: that may be NaN, and 0 times NaN is NaN."""
    _, key, value = under_autocast(query, pool.key, pool.value)
    if pool.valid is None:
        return Pool(key, value)
    valid = pool.valid.to(key.device)
    hidden = ~valid[:, None, :, None]
    return Pool(key.masked_fill(hidden, 0.0), value.masked_fill(hidden, 0.0), valid)


class _Contexts:
    """A plan as lists of rows: `groups` holds rows with equally many contexts, and these contexts."""

    def __init__(self, plan: Tensor, device: torch.device) -> None:
        # the few numbers of a plan are sorted out where Python can see them
        plan = plan.detach().to("cpu", torch.long)
        counts = (plan != NONE).sum(1)
        self.groups = []
        for count in counts.unique().tolist():
            if count:
                rows = (counts == count).nonzero()[:, 0]
                listed = plan[rows][plan[rows] != NONE].view(len(rows), count)
                self.groups.append((rows.to(device), listed.to(device)))

    def chunks(self, pool_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows `[chunk]` and their contexts `[chunk, contexts]`, together at most one copy of the pool."""
        for rows, listed in self.groups:
            size = max(1, pool_rows // listed.shape[1])
            yield from zip(rows.split(size), listed.split(size), strict=True)


class _AttendJointly(torch.autograd.Function):
    """Own window, listed rows and sinks in one softmax; each key set's gradients follow from the joint lse."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pool_key: Tensor,
        pool_value: Tensor,
        sinks: Tensor | None,
        contexts: _Contexts,
        own: Scoring,
        others: Scoring,
    ) -> Tensor:
        joint = Partial(*kernels.forward(query, key, value, own))
        listed = Partial(*_rows_forward(query, pool_key, pool_value, contexts, others))
        joint = merge([joint, listed])
        if sinks is not None:
            joint = sink(joint, sinks)
        ctx.save_for_backward(query, key, value, pool_key, pool_value, sinks, *joint)
        ctx.contexts, ctx.own, ctx.others = contexts, own, others
        return joint.output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, pool_key, pool_value, sinks, output, lse = ctx.saved_tensors
        grad_query, grad_key, grad_value = kernels.backward(
            query, key, value, ctx.own, output, lse, grads[0]
        )
        more_query, grad_pool_key, grad_pool_value = _rows_backward(
            query, pool_key, pool_value, ctx.contexts, ctx.others, output, lse, grads[0]
        )
        grad_sinks = None
        if sinks is not None:
            share = (sinks.to(lse)[:, None] - lse).exp()
            grad_sinks = -(share * (grads[0] * output).sum(-1)).sum((0, 2)).to(sinks.dtype)
        to_own = (grad_query + more_query, grad_key, grad_value)
        return *to_own, grad_pool_key, grad_pool_value, grad_sinks, None, None, None


class _AttendRows(torch.autograd.Function):
    """(query, key, value) -> (output, lse) over the listed rows, with gradients through both."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, contexts: _Contexts, scoring: Scoring
    ) -> tuple[Tensor, Tensor]:
        output, lse = _rows_forward(query, key, value, contexts, scoring)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.contexts, ctx.scoring = contexts, scoring
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        found = _rows_backward(
            query, key, value, ctx.contexts, ctx.scoring, output, lse, grads[0], grads[1]
        )
        return *found, None, None


def _rows_forward(
    query: Tensor, key: Tensor, value: Tensor, contexts: _Contexts, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Output and lse of every row over the rows that it lists."""
    exact = blocked.exact_dtype(query)
    output = torch.zeros(query.shape[:-1] + value.shape[-1:], dtype=exact, device=query.device)
    lse = output.new_full(query.shape[:-1], -torch.inf)
    for rows, listed in contexts.chunks(len(key)):
        output[rows], lse[rows] = kernels.forward(
            query[rows], _gather(key, listed), _gather(value, listed), _visible(scoring, listed)
        )
    return output, lse


def _rows_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    contexts: _Contexts,
    scoring: Scoring,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, given output and lse of the listed rows or of a union that holds them."""
    exact = blocked.exact_dtype(query)
    grad_query = torch.zeros_like(query)
    to_key, to_value = (torch.zeros_like(tensor, dtype=exact) for tensor in (key, value))
    for rows, listed in contexts.chunks(len(key)):
        grad_query[rows], to_keys, to_values = kernels.backward(
            query[rows],
            _gather(key, listed),
            _gather(value, listed),
            _visible(scoring, listed),
            output[rows],
            lse[rows],
            grad_output[rows],
            None if grad_lse is None else grad_lse[rows],
        )
        to_key.index_add_(0, listed.flatten(), _scatter(to_keys, listed).to(exact))
        to_value.index_add_(0, listed.flatten(), _scatter(to_values, listed).to(exact))
    return grad_query, to_key.to(key.dtype), to_value.to(value.dtype)


def _gather(tensor: Tensor, listed: Tensor) -> Tensor:
    """The listed rows as one key set per line: (rows, heads, length, dim) -> (chunk, heads, contexts * length, dim)."""
    chosen = tensor.index_select(0, listed.flatten()).unflatten(0, listed.shape)
    return chosen.transpose(1, 2).flatten(2, 3)


def _scatter(tensor: Tensor, listed: Tensor) -> Tensor:
    """The inverse of `_gather`: (chunk, heads, contexts * length, dim) -> (chunk * contexts, heads, length, dim)."""
    return tensor.unflatten(2, (listed.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _visible(scoring: Scoring, listed: Tensor) -> Scoring:
    if scoring.valid is None:
        return scoring
    return replace(scoring, valid=scoring.valid[listed].flatten(1))
