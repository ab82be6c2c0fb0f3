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

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple

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
    _check_d(documents, d)
    current = (torch.arange(documents)[:, None] + torch.arange(d)) % documents
    return torch.cat([torch.full_like(current, NONE), current])


def packed_plan(documents: int, *, windows: int, d: int) -> Int[Tensor, "rows contexts"]:
    """The paper's plan where a document gives `windows` consecutive rows, the last one its current window.

    The current window of document i sees all earlier windows of documents i, i+1, ..., i+d-1 (modulo
    `documents`): w = windows - 1 previous contexts each, those of its own document first. Earlier windows see
    nobody. With 2 windows this is `paper_plan` with its rows in another order. Raises LongFocusError for a d
    that the documents cannot give, or less than 2 windows.
    """
    _check_d(documents, d)
    if windows < 2:
        raise LongFocusError(
            f"A document must give at least 2 consecutive windows, a previous and a current one. Got {windows}. "
            "Use packing=2 or more."
        )
    seen = (torch.arange(documents)[:, None] + torch.arange(d)) % documents
    previous = (seen[:, :, None] * windows + torch.arange(windows - 1)).flatten(1)
    plan = torch.full((documents, windows, previous.shape[1]), NONE)
    plan[:, -1] = previous
    return plan.flatten(0, 1)


class Segment(NamedTuple):
    """A share of every document's windows, and what they see: LongLLaMA's share(positives, negatives)."""

    share: Fraction
    positives: int
    """Latest earlier windows of the same document."""
    negatives: int
    """Windows of other documents."""


def segments_plan(documents: int, segments: Sequence[Segment]) -> Int[Tensor, "rows contexts"]:
    """LongLLaMA's plan: windows of a document belong to segments in their order, each sees what its segment says.

    A document gives as many consecutive rows as the least common denominator of the shares. Negatives are the
    windows of the documents before it in the batch, the nearest first. Where these do not suffice, those of the
    documents after it follow, the last document first, but only windows up to the first one with negatives: through
    any other a document would see its own future. The first documents see fewer if there are too few of them.
    Raises LongFocusError if a window would need more positives than come before it, or more negatives than the
    other documents have.
    """
    windows = segment_windows(segments)
    sees = [part for part in segments for _ in range(int(part.share * windows))]
    others = (documents - 1) * windows
    # how many windows of a document see nothing of another one, directly or through others
    alone = next((place for place, part in enumerate(sees) if part.negatives), windows)
    plan = torch.full(
        (documents * windows, max(part.positives + part.negatives for part in sees)), NONE
    )
    for place, part in enumerate(sees):
        if part.positives > place or part.negatives > others:
            raise LongFocusError(
                f"Segment ({part.positives},{part.negatives}) cannot be given to window {place} of a document: "
                f"{place} windows of its own come before it, and the other {documents - 1} documents have {others}. "
                "Order segments by growing positives, or use more documents in a batch."
            )
        for document in range(documents):
            first = document * windows
            own = [first + place - 1 - back for back in range(part.positives)]
            before = range(first - 1, -1, -1)
            after = [
                other * windows + back
                for other in range(documents - 1, document, -1)
                for back in range(alone - 1, -1, -1)
            ]
            seen = own + [*before, *after][: part.negatives]
            plan[first + place, : len(seen)] = torch.tensor(seen)
    return plan


def segment_windows(segments: Sequence[Segment]) -> int:
    """Consecutive windows that a document gives. Raises LongFocusError unless the shares add up to 1."""
    total = sum(part.share for part in segments)
    if total != 1 or any(min(part) < 0 or part.share == 0 for part in segments):
        raise LongFocusError(
            f"Shares of segments must be positive and add up to 1, and nothing may be negative. They add up to "
            f"{total}. LongLLaMA 3B used 1/4(0,0) 1/4(1,1) 1/4(2,1) 1/4(3,0)."
        )
    return lcm(*(part.share.denominator for part in segments))


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


def _check_d(documents: int, d: int) -> None:
    if not 1 <= d <= documents:
        raise LongFocusError(
            f"d must lie between 1 and the number of documents, {documents}: every additional context is "
            f"another document. Got d={d}. Use more documents or a smaller d."
        )


def check_plan(plan: Tensor, rows: int, *, first: int = 0, total: int | None = None) -> None:
    """Raise LongFocusError unless `plan` is a valid plan for a batch of `rows` rows.

    Where the rows are part of a greater batch of `total` rows, `first` is the number of their first one in it.
    """
    total = rows if total is None else total
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
    own = torch.arange(first, first + rows, device=plan.device)
    if ((plan < NONE) | (plan >= total)).any():
        wrong = f"an index lies outside -1..{total - 1}"
    elif (plan == own[:, None]).any():
        wrong = "a row lists itself and would read its own future"
    elif ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any():
        wrong = "a row lists another row twice"
    if wrong:
        raise LongFocusError(
            f"This crossbatch plan cannot be used: {wrong}. See paper_plan and published_plan."
        )


def check_circles(plan: Int[Tensor, "rows contexts"], layers: int) -> None:
    """Raise LongFocusError if a row of the whole batch sees itself through others, in as many memory layers.

    The keys that a row sees in its second memory layer hold what the listed rows saw in their first one, and so on: in
    a circle of no more rows than layers, a token sees later ones of its own window.
    """
    rows = len(plan)
    sees = torch.zeros(rows, rows + 1, device=plan.device)
    # where nothing is listed, a column that is cut off
    sees = sees.scatter_(1, plan.long().where(plan != NONE, rows), 1.0)[:, :rows]
    reached = sees
    for step in range(2, layers + 1):
        reached = (reached @ sees).clamp_(max=1.0)
        if not bool(reached.any()):
            return
        if bool((inside := reached.diagonal() > 0).any()):
            raise LongFocusError(
                f"This crossbatch plan cannot be used with {layers} memory layers: in {step} of them rows "
                f"{inside.nonzero().flatten().tolist()} would see later tokens of their own, each through rows that "
                "see it. Use a plan without circles, such as paper_plan, or one memory layer."
            )
