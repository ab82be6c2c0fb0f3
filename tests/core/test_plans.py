"""Crossbatch plans: the paper's and the published ones by hand, and what is refused."""

import pytest
import torch
from torch import Tensor

import longfocus
from longfocus.core.plans import check_plan


def test_the_papers_plan_lists_the_own_past_and_d_minus_1_other_documents() -> None:
    assert longfocus.paper_plan(3, d=2).tolist() == [
        *[[-1, -1]] * 3,  # previous windows see nobody
        [0, 1],
        [1, 2],
        [2, 0],
    ]
    assert longfocus.paper_plan(2, d=1).tolist() == [[-1], [-1], [0], [1]]
    assert longfocus.paper_plan(1, d=1).tolist() == [[-1], [0]]
    assert longfocus.paper_plan(4, d=4)[4:].sort(1).values.tolist() == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize("d", [-1, 0, 4])
def test_a_d_that_the_documents_cannot_give_is_refused(d: int) -> None:
    with pytest.raises(longfocus.LongFocusError, match=rf"between 1 and .* 3: .* Got d={d}\."):
        longfocus.paper_plan(3, d=d)


def rows_seen(plan: Tensor) -> list[set[int]]:
    return [set(row.tolist()) - {-1} for row in plan]


def test_the_published_plan_lists_the_rows_before_without_wrapping_around() -> None:
    plan = longfocus.published_plan(4, context_range=2)
    assert rows_seen(plan) == [set(), {0}, {1, 0}, {2, 1}]
    assert longfocus.published_plan(3, context_range=0).shape == (3, 0)


def test_packing_without_stepping_changes_nothing() -> None:
    plain = longfocus.published_plan(6, context_range=3)
    assert longfocus.published_plan(6, context_range=3, packing=3).equal(plain)
    assert longfocus.published_plan(6, context_range=3, stepping=True).equal(plain)


def test_stepping_shows_the_later_parts_of_a_pack_more_and_more_rows() -> None:
    # n = 6 rows with the own one, step = ceil(6 / 2) = 3: a part sees 1, 4 or 6 of them, itself included
    plan = longfocus.published_plan(9, context_range=5, stepping=True, packing=3)
    assert [len(seen) for seen in rows_seen(plan)] == [0, 1, 2, 0, 3, 5, 0, 3, 5]
    assert rows_seen(plan)[4] == {3, 2, 1}
    # packs of two parts: step = n, the second part sees all
    plan = longfocus.published_plan(6, context_range=2, stepping=True, packing=2)
    assert rows_seen(plan) == [set(), {0}, set(), {2, 1}, set(), {4, 3}]


@pytest.mark.parametrize(
    "settings",
    [
        {"context_range": -1},
        {"context_range": 2, "packing": 0},
        {"context_range": 2, "packing": 4},
    ],
)
def test_a_published_plan_that_does_not_fit_the_batch_is_refused(settings: dict) -> None:
    with pytest.raises(longfocus.LongFocusError, match="divide the batch"):
        longfocus.published_plan(6, **settings)


@pytest.mark.parametrize("stepping", [False, True])
@pytest.mark.parametrize("packing", [1, 2, 3, 6])
@pytest.mark.parametrize("context_range", [0, 1, 4, 9])
def test_every_plan_that_is_made_is_accepted(
    context_range: int, packing: int, stepping: bool
) -> None:
    plan = longfocus.published_plan(
        6, context_range=context_range, packing=packing, stepping=stepping
    )
    check_plan(plan, 6)
    assert all(max(seen, default=-1) < row for row, seen in enumerate(rows_seen(plan)))
    for d in range(1, 4):
        check_plan(longfocus.paper_plan(3, d=d), 6)


REFUSED = {
    "lists itself": torch.tensor([[-1, -1], [0, 1], [0, -1]]),
    "twice": torch.tensor([[-1, -1], [-1, -1], [1, 1]]),
    "outside -1..2": torch.tensor([[3, -1], [0, -1], [0, 1]]),
    r"outside -1\.\.": torch.tensor([[-2, -1], [0, -1], [0, 1]]),
    r"int64 \(2, 1\)": torch.tensor([[-1], [0]]),
    r"int64 \(3,\)": torch.tensor([-1, 0, 1]),
    "float32": torch.tensor([[-1.0], [0.0], [1.0]]),
    "torch.bool": torch.tensor([[False], [False], [True]]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_plan_that_cannot_be_meant_is_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason) as error:
        check_plan(REFUSED[reason], 3)
    assert "paper_plan" in str(error.value)
