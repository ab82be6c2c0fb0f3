"""Plans in which a row sees itself through others: refused exactly where it would see its own future."""

from typing import Any

import pytest
import torch
from fitting import VOCABULARY, tiny_model
from torch import Tensor

import longfocus
from longfocus.core.plans import NONE, check_circles
from longfocus.hf import checks
from longfocus.training.contexts import parse_contexts

LENGTH = 8


def ring(rows: int) -> Tensor:
    """Row 0 sees row 1, which sees row 2, ..., and the last one row 0; one more row sees all of them."""
    plan = torch.full((rows + 1, rows), NONE)
    plan[:rows, 0] = torch.arange(1, rows + 1) % rows
    plan[rows] = torch.arange(rows)
    return plan


def model_of(layers: int) -> Any:
    model = longfocus.detach(tiny_model())
    focus = longfocus.FocusConfig(memory_layers=tuple(range(layers)), window=16)
    model.config.focus = focus.to_dict()
    return longfocus.attach(model, focus, verify=False).eval()


def sees_its_future(model: Any, plan: Tensor) -> bool:
    """Whether a row's last token changes logits before it."""
    ids = torch.randint(1, VOCABULARY, (len(plan), LENGTH))
    other = ids.clone()
    other[0, -1] = ids[0, -1] % (VOCABULARY - 1) + 1
    with torch.no_grad():
        one, two = (
            model(given, additional_contexts=plan, use_cache=False).logits for given in (ids, other)
        )
    return not one[0, :-1].equal(two[0, :-1])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [2, 3])
def test_a_circle_is_refused_where_there_are_layers_to_go_round_it(
    rows: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, model = ring(rows), model_of(layers)
    if layers < rows:
        assert not sees_its_future(model, plan)
        return
    listed = list(range(rows))
    with pytest.raises(longfocus.LongFocusError, match=rf"in {rows} of them rows \{listed} would"):
        sees_its_future(model, plan)
    monkeypatch.setattr(checks, "check_circles", lambda *_: None)
    assert sees_its_future(model, plan)


def test_plans_are_refused_exactly_for_ways_back_of_no_more_steps_than_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(200):
        plan = torch.randint(-2, 6, (6, 2), generator=generator).clamp(min=NONE)
        plan[plan == torch.arange(6)[:, None]] = NONE
        seen = [set(row.tolist()) - {NONE} for row in plan]
        for layers in range(1, 5):
            reached, has_way_back = [set(row) for row in seen], False
            for _ in range(2, layers + 1):
                reached = [set().union(*(seen[other] for other in row)) for row in reached]
                has_way_back |= any(row in found for row, found in enumerate(reached))
            try:
                check_circles(plan, layers)
            except longfocus.LongFocusError:
                refused += 1
                assert has_way_back
            else:
                assert not has_way_back
    assert 100 < refused < 700


@pytest.mark.parametrize(
    "name", ["paper", "paper(w=2)", "published(packing=3,stepping)", "1/3(0,0) 1/3(1,4) 1/3(2,2)"]
)
def test_named_plans_have_no_circle(name: str) -> None:
    contexts = parse_contexts(name)
    drawn = contexts.draw(6 * contexts.windows, 3, torch.Generator())
    check_circles(drawn.plan, len(drawn.plan))
