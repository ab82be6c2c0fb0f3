"""What a step of crossbatch is given besides its batch: who sees whom, what is padding, which ranks take part.

With several processes a plan may list rows of other ranks: row r of rank n is number n * rows + r. Keys and values
travel by an all-gather whose gradients travel back, so d can exceed what one device holds.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed

from longfocus.core.blocked import Scoring
from longfocus.core.crossbatch import Pool, attend_rows
from longfocus.core.plans import NONE

SAMPLED_ROWS, SAMPLED_QUERIES = 8, 16


class PositiveMass:
    """Measures r_d: the share of attention to additional contexts that falls on the positive ones (paper, section 3.2).

    1/d says that keys of other documents are not told apart. Averaged over heads and a sample of rows and of their
    real tokens.
    """

    def __init__(self, is_positive: Bool[Tensor, "rows contexts"]) -> None:
        self.is_positive = is_positive
        self.by_layer: dict[int, float] = {}

    @torch.no_grad()
    def look(
        self,
        layer: int,
        query: Float[Tensor, "batch heads length dim"],
        pool: Pool,
        plan: Int[Tensor, "batch contexts"],
        scoring: Scoring,
        is_real: Bool[Tensor, "batch length"] | None = None,
    ) -> None:
        """Measure one layer; rows without a real token in a positive context have no say, nor has padding."""
        is_positive, plan = self.is_positive.to(plan.device), plan.long()
        if pool.valid is not None:
            is_positive = is_positive & pool.valid.any(1)[plan]
        sampled = slice(None, None, -(-query.shape[2] // SAMPLED_QUERIES))
        queries = query[:, :, sampled]
        asked = torch.ones_like(queries[:, 0, :, 0], dtype=torch.bool)
        if is_real is not None:
            asked = is_real[:, sampled]
        rows = (is_positive.any(1) & asked.any(1)).nonzero()[:, 0]
        if not len(rows):
            return
        rows = rows[:: -(-len(rows) // SAMPLED_ROWS)]
        queries, listed = queries[rows], plan[rows]
        options: dict[str, Any] = {"scale": scoring.scale, "softcap": scoring.softcap}
        everything = attend_rows(queries, pool, listed, **options).lse
        positive = attend_rows(
            queries, pool, listed.masked_fill(~is_positive[rows], NONE), **options
        ).lse
        share = (positive - everything).exp()
        self.by_layer[layer] = share.transpose(1, 2)[asked[rows]].mean().item()


@dataclass(frozen=True)
class AdditionalContexts:
    """What `model(..., additional_contexts=)` takes where a bare plan does not say enough."""

    plan: Int[Tensor, "rows contexts"]
    """See `core.plans`; with `group`, rows are numbered over all of its ranks."""
    valid: Bool[Tensor, "rows length"] | None = None
    """Real tokens as other rows see them. None: those of the attention mask."""
    group: distributed.ProcessGroup | None = field(default=None, repr=False)
    """Processes whose rows may be listed; all must have equally many rows. None: this one alone."""
    mass: PositiveMass | None = None
    """Measures while the step is computed."""
    detached: bool = False
    """Keys and values take no gradient from rows that list them: the paper's ablation of differentiable ones."""

    @property
    def first_row(self) -> int:
        """Number of this process's first row; needs the number of rows of the plan."""
        return 0 if self.group is None else self.group.rank() * len(self.plan)

    @property
    def all_rows(self) -> int:
        return len(self.plan) * (1 if self.group is None else self.group.size())

    def pool(self, key: Tensor, value: Tensor) -> Pool:
        """The windows that the plan lists by number, from this process's own keys and values."""
        if self.detached:
            key, value = key.detach(), value.detach()
        if self.group is None:
            return Pool(key, value, self.valid)
        valid = self.valid
        if valid is None:
            # ranks must agree on what they exchange
            valid = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
        everybody = _AllGather.apply(valid.to(key.dtype), self.group) > 0
        return Pool(
            _AllGather.apply(key, self.group), _AllGather.apply(value, self.group), everybody
        )


class _AllGather(torch.autograd.Function):
    """The rows of all ranks, one rank after the other; gradients are summed over the ranks that used them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, len(tensor)
        gathered = tensor.new_empty(len(tensor) * group.size(), *tensor.shape[1:])
        distributed.all_gather(list(gathered.chunk(group.size())), tensor.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        # every backend can sum over ranks; few can scatter the sum
        total = grads[0].contiguous().clone()
        distributed.all_reduce(total, group=ctx.group)
        own = ctx.group.rank() * ctx.rows
        return total[own : own + ctx.rows], None
