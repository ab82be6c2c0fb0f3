"""Plans by name are the plans of core, drawn per step, and drawn as a picture."""

from collections import Counter

import pytest
import torch

import longfocus
from longfocus.core.plans import packed_plan, published_plan
from longfocus.training.contexts import Contexts, StepPlan, draw_picture, parse_contexts, positives

LONGLLAMA = "1/4(0,0) 1/4(1,1) 1/4(2,1) 1/4(3,0)"


def drawn(contexts: Contexts, rows: int, d: int = 2, seed: int = 0) -> StepPlan:
    return contexts.draw(rows, d, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "windows", "uses_d", "plan"),
    [
        ("paper", 2, True, packed_plan(6, windows=2, d=2)),
        (" paper ", 2, True, packed_plan(6, windows=2, d=2)),
        ("paper(w=1)", 2, True, packed_plan(6, windows=2, d=2)),
        ("paper( w = 3 )", 4, True, packed_plan(3, windows=4, d=2)),
        ("published", 1, True, published_plan(12, context_range=2)),
        ("published()", 1, True, published_plan(12, context_range=2)),
        ("published(packing=3)", 3, True, published_plan(12, context_range=2, packing=3)),
        *[
            (text, 4, True, published_plan(12, context_range=2, packing=4, stepping=True))
            for text in ("published(packing=4,stepping)", "published( stepping , packing = 4 )")
        ],
        (LONGLLAMA, 4, False, None),
        ("0.5(0,0) 0.5( 1 , 1 )", 2, False, None),
        ("1/2(0,0)1/2(1,1)", 2, False, None),
    ],
)
def test_a_plan_is_read_from_its_name(
    text: str, windows: int, uses_d: bool, plan: torch.Tensor | None
) -> None:
    contexts = parse_contexts(text)
    assert (contexts.windows, contexts.uses_d) == (windows, uses_d)
    found = drawn(contexts, 12)
    assert found.is_positive.shape == found.plan.shape
    if plan is not None:
        assert found.plan.equal(plan)
    # the name makes the same plan again
    assert drawn(parse_contexts(contexts.name), 12).plan.equal(found.plan)


def test_segments_do_not_depend_on_d() -> None:
    contexts = parse_contexts(LONGLLAMA)
    assert drawn(contexts, 12, d=1).plan.equal(drawn(contexts, 12, d=99).plan)
    found = drawn(contexts, 12)
    assert found.is_positive.sum(1).tolist() == [0, 1, 2, 3] * 3
    assert (found.plan >= 0).sum(1).tolist() == [0, 2, 3, 3] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "papers",
        "paper(2)",
        "paper(w)",
        "paper(w=)",
        "paper(w=0)",
        "paper(w=-1)",
        "paper(w=²)",
        "paper(w=1,w=2)",
        "paper(w=1,packing=2)",
        "paper(stepping)",
        "published(w=2)",
        "published(packing=0)",
        "published(packing)",
        "published(stepping=1)",
        "published(stepping,stepping)",
        "published(,)",
        "paper + paper",
        "1/2 paper +",
        "1/2 paper + 1/2",
        "1/2 paper + 1/2 papers",
        "1/0 paper + 1 paper",
        "1/2/2 paper + 1/2 paper",
        ". paper + 1 paper",
        "1/0(0,0)",
        "1.5.1(0,0)",
        "1/2(0,0) 1/2(1)",
        "1/2(0,0) and 1/2(1,1)",
        "1/1(0,-1)",
    ],
)
def test_what_is_no_plan_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(
        longfocus.LongFocusError, match=r"not a plan of contexts\. Allowed"
    ) as error:
        parse_contexts(text)
    assert LONGLLAMA in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1/2(0,0) 1/4(1,1)", "add up to 3/4"),
        ("1/2 paper + 1/4 paper", "add up to 1"),
        ("1/2 paper + 1/2 published(packing=4)", "equally many windows"),
        ("1/2 paper + 1/2 1/4(0,0)", "add up to 1/4"),
    ],
)
def test_shares_that_do_not_fit_are_refused(text: str, reason: str) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason):
        parse_contexts(text)


@pytest.mark.parametrize(
    ("text", "rows", "d", "reason"),
    [
        ("paper", 5, 2, r"5 rows .* 2 windows .* multiple of 2"),
        ("paper", 6, 4, r"3: .* Got d=4\."),
        ("paper(w=2)", 8, 1, r"8 rows .* 3 windows"),
        ("published(packing=2)", 4, 4, r"d=4 is beyond the batch: at most 3 rows .* 4 rows"),
        (LONGLLAMA, 4, 2, r"\(1,1\) .* the other 0 documents"),
        ("1/2(0,0) 1/2(2,0)", 4, 2, r"\(2,0\) .* 1 windows of its own"),
    ],
)
def test_a_plan_that_is_impossible_with_the_batch_is_refused(
    text: str, rows: int, d: int, reason: str
) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason):
        drawn(parse_contexts(text), rows, d)


def test_a_mixture_draws_its_plans_in_their_shares() -> None:
    contexts = parse_contexts("3/4 paper + 1/4 published(packing=2)")
    assert (contexts.windows, contexts.uses_d) == (2, True)
    plans = {
        "paper": packed_plan(3, windows=2, d=2),
        "published": published_plan(6, context_range=2, packing=2),
    }
    generator = torch.Generator().manual_seed(0)
    found = [contexts.draw(6, 2, generator).plan for _ in range(400)]
    counts = Counter(next(n for n, p in plans.items() if p.equal(plan)) for plan in found)
    assert 270 < counts["paper"] < 330
    # the same numbers draw the same plans
    again = torch.Generator().manual_seed(0)
    assert all(contexts.draw(6, 2, again).plan.equal(plan) for plan in found)


def test_a_share_of_0_is_never_drawn_and_segments_can_be_mixed() -> None:
    contexts = parse_contexts("0 paper + 1 1/2(0,0) 1/2(1,1)")
    expected = drawn(parse_contexts("1/2(0,0) 1/2(1,1)"), 6).plan
    assert all(drawn(contexts, 6, seed=seed).plan.equal(expected) for seed in range(20))


def test_drawing_uses_as_many_random_numbers_whatever_the_plan() -> None:
    states = []
    for text in ("paper", "published(packing=2)", "1/2 paper + 1/2 published(packing=2)"):
        generator = torch.Generator().manual_seed(3)
        parse_contexts(text).draw(6, 2, generator)
        states.append(generator.get_state())
    assert states[0].equal(states[1])
    assert states[0].equal(states[2])


def test_positives_are_the_windows_of_the_own_document() -> None:
    plan = torch.tensor([[-1, 1], [0, 2], [3, -1], [2, 0], [5, 1], [4, 3]])
    expected = [[False, True], [True, False], [True, False], [True, False], [True, False]]
    assert positives(plan, 2).tolist() == [*expected, [True, False]]
    assert not positives(plan, 1).any()
    assert positives(plan, 6).equal(plan >= 0)


def test_the_picture_shows_who_sees_whom() -> None:
    assert draw_picture(drawn(parse_contexts("paper"), 6), 2).splitlines() == [
        "    0  #.|..|..  0 positive, 0 negative",
        "    1  +#|-.|..  1 positive, 1 negative",
        "       --+--+--",
        "    2  ..|#.|..  0 positive, 0 negative",
        "    3  ..|+#|-.  1 positive, 1 negative",
        "       --+--+--",
        "    4  ..|..|#.  0 positive, 0 negative",
        "    5  -.|..|+#  1 positive, 1 negative",
    ]
    assert draw_picture(drawn(parse_contexts("published"), 3), 1).splitlines() == [
        "    0  #|.|.  0 positive, 0 negative",
        "    1  -|#|.  0 positive, 1 negative",
        "    2  -|-|#  0 positive, 2 negative",
    ]


def test_a_picture_of_many_rows_is_cut_at_a_document() -> None:
    step = drawn(parse_contexts("paper(w=2)"), 12)
    lines = draw_picture(step, 3, most_rows=7).splitlines()
    assert lines[-1] == "  ... 6 more rows and columns"
    assert lines[2] == "    2  ++#|--.  2 positive, 2 negative"
    # the second document sees the third one, which is not shown
    assert lines[-2] == "    5  ...|++#  2 positive, 2 negative"
    assert len(lines) == 6 + 1 + 1
    # one document is always shown whole
    assert draw_picture(step, 3, most_rows=1).splitlines()[0].startswith("    0  #..  ")
