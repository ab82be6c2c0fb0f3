"""r_d is the share of attention to additional contexts that positives get; padding has no part in it."""

import pytest
import torch
from sets import random_set
from torch import Tensor

import longfocus
from longfocus.core.additional import (
    SAMPLED_QUERIES,
    SAMPLED_ROWS,
    AdditionalContexts,
    PositiveMass,
)
from longfocus.core.blocked import Scoring
from longfocus.core.crossbatch import Pool
from longfocus.core.plans import packed_plan
from longfocus.training.contexts import positives

LENGTH, SCALE = 9, 0.35


def measured(
    query: Tensor,
    pool: Pool,
    plan: Tensor,
    is_positive: Tensor,
    scoring: Scoring | None = None,
    is_real: Tensor | None = None,
) -> dict[int, float]:
    mass = PositiveMass(is_positive)
    mass.look(5, query, pool, plan, scoring or Scoring(scale=SCALE), is_real)
    return mass.by_layer


def plain_mass(
    query: Tensor, pool: Pool, plan: Tensor, is_positive: Tensor, softcap: float | None = None
) -> Tensor:
    """r_d of every row `[rows, heads, queries]`, NaN where a row lists nobody."""
    groups = query.shape[1] // pool.key.shape[1]
    keys = pool.key.repeat_interleave(groups, 1)
    found = []
    for row, contexts in enumerate(plan.tolist()):
        total, positive = torch.zeros(2, *query.shape[1:3], dtype=query.dtype)
        for place, other in enumerate(contexts):
            if other < 0:
                continue
            scores = query[row] @ keys[other].mT * SCALE
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            if pool.valid is not None:
                weights = weights * pool.valid[other]
            total += weights.sum(-1)
            positive += weights.sum(-1) * is_positive[row, place]
        found.append(positive / total)
    return torch.stack(found)


def packed(documents: int = 3, d: int = 2) -> tuple[Tensor, Tensor]:
    plan = packed_plan(documents, windows=2, d=d)
    return plan, positives(plan, 2)


def rows_of(plan: Tensor, length: int = LENGTH) -> tuple[Tensor, Pool]:
    query, key, value = random_set(length, length, batch=len(plan), heads=4, kv_heads=2)
    return query, Pool(key, value)


@pytest.mark.parametrize("softcap", [None, 1.2])
def test_it_is_the_mass_on_positives_divided_by_the_mass_on_all_contexts(
    softcap: float | None,
) -> None:
    plan, is_positive = packed()
    query, pool = rows_of(plan)
    found = measured(query, pool, plan, is_positive, Scoring(scale=SCALE, softcap=softcap))
    # rows 1, 3 and 5 are the current windows; all their queries are in the sample
    expected = plain_mass(query, pool, plan, is_positive, softcap)[1::2].mean()
    assert found.keys() == {5}
    assert found[5] == pytest.approx(expected.item(), abs=1e-12)


def test_rows_without_a_positive_have_no_say() -> None:
    plan = torch.tensor([[1, 2], [-1, -1], [3, -1], [2, 1]])
    is_positive = torch.tensor([[False, True], [False] * 2, [False] * 2, [True, False]])
    query, pool = rows_of(plan)
    expected = plain_mass(query, pool, plan, is_positive)[[0, 3]].mean()
    assert measured(query, pool, plan, is_positive)[5] == pytest.approx(expected.item(), abs=1e-12)
    assert measured(query, pool, plan, torch.zeros_like(is_positive)) == {}


def test_it_is_1_where_all_contexts_are_positive() -> None:
    plan, is_positive = packed(d=1)
    query, pool = rows_of(plan)
    assert measured(query, pool, plan, is_positive)[5] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("d", [2, 3, 6])
def test_keys_that_cannot_be_told_apart_give_exactly_1_divided_by_d(d: int) -> None:
    plan, is_positive = packed(documents=6, d=d)
    query, pool = rows_of(plan)
    same = pool.key[:1].expand_as(pool.key).contiguous()
    found = measured(query, Pool(same, pool.value), plan, is_positive)
    assert found[5] == pytest.approx(1 / d, abs=1e-12)


def test_random_keys_give_about_1_divided_by_d() -> None:
    plan, is_positive = packed(documents=8, d=4)
    query, pool = rows_of(plan, length=200)
    assert measured(query, pool, plan, is_positive)[5] == pytest.approx(1 / 4, abs=0.03)


def test_of_many_rows_and_queries_a_sample_is_measured() -> None:
    plan, is_positive = packed(documents=2 * SAMPLED_ROWS, d=2)
    query, pool = rows_of(plan, length=3 * SAMPLED_QUERIES)
    expected = plain_mass(query, pool, plan, is_positive)[1::4, :, ::3].mean()
    assert measured(query, pool, plan, is_positive)[5] == pytest.approx(expected.item(), abs=1e-12)


def test_padding_is_neither_measured_nor_asked() -> None:
    plan, is_positive = packed()
    query, pool = rows_of(plan)
    # row 2, the positive of row 3, holds nothing; rows 0 and 5 are padded
    real = torch.arange(LENGTH) < torch.tensor([4, 9, 0, 9, 9, 2])[:, None]
    padded = Pool(pool.key, pool.value, real)
    mass = plain_mass(query, padded, plan, is_positive).transpose(1, 2)
    expected = torch.cat([mass[row][real[row]] for row in (1, 5)]).mean()
    found = measured(query, padded, plan, is_positive, is_real=real)
    assert found[5] == pytest.approx(expected.item(), abs=1e-12)
    nothing = Pool(pool.key, pool.value, torch.zeros_like(real))
    assert measured(query, nothing, plan, is_positive) == {}
    assert measured(query, pool, plan, is_positive, is_real=torch.zeros_like(real)) == {}


def test_a_plan_of_small_integers_is_measured_like_any() -> None:
    plan, is_positive = packed()
    query, pool = rows_of(plan)
    pool = pool._replace(valid=torch.ones(len(plan), LENGTH, dtype=torch.bool))
    small = measured(query, pool, plan.to(torch.int8), is_positive)
    assert small == measured(query, pool, plan, is_positive)


def test_without_other_processes_the_rows_are_numbered_from_0() -> None:
    contexts = AdditionalContexts(longfocus.paper_plan(2, d=2))
    assert (contexts.first_row, contexts.all_rows) == (0, 4)
