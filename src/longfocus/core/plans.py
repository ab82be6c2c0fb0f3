"""Crossbatch plans: which rows of a batch see which other rows (paper section 3.2).

A plan is an integer tensor `[rows, contexts]`. Entry `plan[b, c]` is a row whose whole window row b sees in
its memory layers, -1 none:

    paper_plan(3, d=2)            rows 0..2: previous windows, rows 3..5: the current ones

        row   sees
        0-2   -
        3     0 1      0 is its own past (positive), 1 another document (negative)
        4     1 2
        5     2 0
"""

import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError

NONE = -1


def paper_plan(documents: int, *, d: int) -> Int[Tensor, "rows contexts"]:
    """The paper's plan for `documents` previous windows followed by their `documents` current windows.

    Current window i sees the previous windows of documents i, i+1, ..., i+d-1 (modulo `documents`): one
    positive and d-1 negatives. Raises LongFocusError unless 1 <= d <= documents.
    """
    if not 1 <= d <= documents:
        raise LongFocusError(
            f"d must lie between 1 and the number of documents, {documents}: every additional context is "
            f"another document. Got d={d}. Use more documents or a smaller d."
        )
    current = (torch.arange(documents)[:, None] + torch.arange(d)) % documents
    return torch.cat([torch.full_like(current, NONE), current])


def published_plan(
    batch_size: int, *, context_range: int, stepping: bool = False, packing: int = 1
) -> Int[Tensor, "rows contexts"]:
    """The plan of the published JAX code: row i sees rows i-1, i-2, ... up to `context_range` of them.

    With `packing` k, k consecutive rows are parts of one document. With `stepping` the first part of a
    pack sees only itself and later parts see more and more. There is no wrap-around: row 0 sees nobody.
    Raises LongFocusError if `batch_size` is not a multiple of `packing`.
    """
    if context_range < 0 or packing < 1 or batch_size % packing:
        raise LongFocusError(
            f"batch_size={batch_size}, context_range={context_range}, packing={packing}: packing must be at least 1 "
            "and divide the batch, context_range must not be negative."
        )
    row = torch.arange(batch_size)
    reach = torch.full_like(row, context_range)
    if stepping and packing > 1:
        # ceil((range + 1) / (packing - 1)) more rows for every later part of a pack
        step = -(-(context_range + 1) // (packing - 1))
        reach = ((row % packing) * step).clamp(max=context_range)
    distance = 1 + torch.arange(context_range)
    seen = row[:, None] - distance
    return torch.where((distance <= reach[:, None]) & (seen >= 0), seen, NONE)


def check_plan(plan: Tensor, rows: int) -> None:
    """Raise LongFocusError unless `plan` is a valid plan for a batch of `rows` rows."""
    if (
        plan.dim() != 2
        or plan.shape[0] != rows
        or plan.is_floating_point()
        or plan.dtype == torch.bool
    ):
        raise LongFocusError(
            f"A crossbatch plan must be an integer tensor [{rows}, contexts], one line per batch row. "
            f"Got {plan.dtype} {tuple(plan.shape)}. See paper_plan and published_plan."
        )
    wrong = None
    ordered = plan.sort(dim=1).values
    if ((plan < NONE) | (plan >= rows)).any():
        wrong = f"an index lies outside -1..{rows - 1}"
    elif (plan == torch.arange(rows, device=plan.device)[:, None]).any():
        wrong = "a row lists itself and would read its own future"
    elif ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any():
        wrong = "a row lists another row twice"
    if wrong:
        raise LongFocusError(
            f"This crossbatch plan cannot be used: {wrong}. See paper_plan and published_plan."
        )
