"""Crossbatch plans: the paper's and the published ones by hand, and what is refused."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

import longfocus
from longfocus.core.plans import (
    Segment,
    check_plan,
    packed_plan,
    published_plan,
    segment_windows,
    segments_plan,
)


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


def segments(*parts: tuple[int, int]) -> list[Segment]:
    """Equal shares of (positives, negatives)."""
    return [Segment(Fraction(1, len(parts)), *part) for part in parts]


LONGLLAMA = segments((0, 0), (1, 1), (2, 1), (3, 0))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_packed_plan_of_two_windows_is_the_papers_with_other_row_numbers(d: int) -> None:
    documents = 3
    # row of a packed batch -> row of the paper's: previous windows first, then current ones
    place = torch.tensor([window * documents + i for i in range(documents) for window in (0, 1)])
    packed = packed_plan(documents, windows=2, d=d)
    renamed = torch.where(packed >= 0, place[packed], -1)
    assert renamed.equal(longfocus.paper_plan(documents, d=d)[place])


def test_a_packed_plan_lists_all_earlier_windows_of_d_documents() -> None:
    assert packed_plan(2, windows=3, d=2).tolist() == [
        *[[-1] * 4] * 2,
        [0, 1, 3, 4],
        *[[-1] * 4] * 2,
        [3, 4, 0, 1],
    ]


def test_the_segments_of_longllama_are_the_published_stepping() -> None:
    published = published_plan(12, context_range=3, stepping=True, packing=4)
    ours = segments_plan(3, LONGLLAMA)
    assert rows_seen(ours)[4:] == rows_seen(published)[4:]
    # the first document, which has none before it, sees the beginning of the last one
    assert rows_seen(ours)[:4] == [set(), {0, 8}, {0, 1, 8}, {0, 1, 2}]


def test_a_document_gives_as_many_windows_as_the_shares_have_in_common() -> None:
    halves = [Segment(Fraction(1, 2), 0, 0), Segment(Fraction(1, 2), 1, 1)]
    assert segment_windows(halves) == 2
    assert segment_windows([Segment(Fraction(1, 3), 0, 0), Segment(Fraction(2, 3), 0, 1)]) == 3
    mixed = [
        Segment(Fraction(1, 2), 0, 0),
        Segment(Fraction(1, 6), 1, 0),
        Segment(Fraction(1, 3), 2, 0),
    ]
    assert segment_windows(mixed) == 6
    assert rows_seen(segments_plan(1, mixed)) == [set(), set(), set(), {2}, {3, 2}, {4, 3}]


SEGMENTS = {
    "longllama": LONGLLAMA,
    "halves": segments((0, 0), (1, 1)),
    "negatives only": segments((0, 1)),
    "many negatives": segments((0, 0), (0, 5), (1, 4)),
    "late": segments((0, 0), (1, 0), (0, 3)),
}

every_segments = pytest.mark.parametrize("name", SEGMENTS)


@every_segments
@pytest.mark.parametrize("documents", [3, 4, 7])
def test_segments_give_every_window_its_positives_and_no_row_twice(
    name: str, documents: int
) -> None:
    parts = SEGMENTS[name]
    windows, plan = len(parts), segments_plan(documents, parts)
    check_plan(plan, documents * windows)
    for row, seen in enumerate(rows_seen(plan)):
        document, place = divmod(row, windows)
        own = {other for other in seen if other // windows == document}
        assert own == {row - 1 - back for back in range(parts[place].positives)}
        negatives = [other for other in plan[row].tolist() if other >= 0 and other not in own]
        # those of the documents before it, the nearest first
        before = list(range(document * windows - 1, -1, -1))[: parts[place].negatives]
        assert negatives[: len(before)] == before
        assert len(negatives) <= parts[place].negatives


@every_segments
@pytest.mark.parametrize("documents", [3, 4, 7])
def test_segments_never_lead_back_to_the_own_or_a_later_window(name: str, documents: int) -> None:
    windows = len(SEGMENTS[name])
    direct = rows_seen(segments_plan(documents, SEGMENTS[name]))
    for row in range(documents * windows):
        reached: set[int] = set()
        coming = direct[row]
        while coming:
            reached |= coming
            coming = set().union(*(direct[other] for other in coming)) - reached
        document = row // windows
        assert not reached & set(range(row, (document + 1) * windows))


@pytest.mark.parametrize(
    ("parts", "documents", "reason"),
    [
        ([(0, 0), (2, 0)], 4, r"\(2,0\) .* window 1 .*: 1 windows of its own"),
        ([(1, 0), (1, 0)], 4, r"\(1,0\) .* window 0 .*: 0 windows of its own"),
        ([(0, 0), (1, 5)], 3, r"\(1,5\) .* the other 2 documents have 4\."),
        ([(0, 1)], 1, r"\(0,1\) .* the other 0 documents have 0\."),
    ],
)
def test_segments_that_the_batch_cannot_give_are_refused(
    parts: list[tuple[int, int]], documents: int, reason: str
) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason):
        segments_plan(documents, segments(*parts))


@pytest.mark.parametrize(
    ("parts", "total"),
    [
        ([], "0"),
        ([Segment(Fraction(1, 2), 0, 0)], "1/2"),
        ([Segment(Fraction(1, 2), 0, 0), Segment(Fraction(2, 3), 0, 0)], "7/6"),
        ([Segment(Fraction(1), 0, 0), Segment(Fraction(0), 0, 0)], "1"),
        ([Segment(Fraction(2), 0, 0), Segment(Fraction(-1), 0, 0)], "1"),
        ([Segment(Fraction(1), -1, 0)], "1"),
    ],
)
def test_shares_that_are_none_are_refused(parts: list[Segment], total: str) -> None:
    with pytest.raises(longfocus.LongFocusError, match=rf"They add up to {total}\."):
        segment_windows(parts)


@pytest.mark.parametrize("d", [0, 4])
def test_a_packed_plan_with_a_d_that_the_documents_cannot_give_is_refused(d: int) -> None:
    with pytest.raises(longfocus.LongFocusError, match=rf"between 1 and .* 3: .* Got d={d}\."):
        packed_plan(3, windows=2, d=d)


def test_a_packed_plan_of_a_single_window_is_refused() -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"at least 2 .* Got 1\."):
        packed_plan(3, windows=1, d=1)


def test_a_part_of_a_greater_batch_lists_rows_of_all_of_it_but_not_its_own() -> None:
    whole = longfocus.paper_plan(3, d=2)
    for first in (0, 2, 4):
        check_plan(whole[first : first + 2], 2, first=first, total=6)
    with pytest.raises(longfocus.LongFocusError, match="lists itself"):
        check_plan(torch.tensor([[0], [3]]), 2, first=2, total=6)
    with pytest.raises(longfocus.LongFocusError, match=r"outside -1\.\.5"):
        check_plan(torch.tensor([[0], [6]]), 2, first=2, total=6)
