"""The bound on missed attention is never below the truth, on whatever keys, and near it on keys as models make them."""

import pytest
import torch
from certify_cases import (
    DIMS,
    KINDS,
    TYPES,
    by_cluster,
    cluster_of,
    memory,
    missed,
    queries_for,
    true_scores,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longfocus.memory import Part, certificate
from longfocus.memory.certificate import bound, largest_key, lse_error, masses, missed_share
from longfocus.memory.clusters import Clusters
from longfocus.memory.residuals import Residuals
from longfocus.memory.sorting import cluster


def visited_by(logs: Tensor, count: int) -> Tensor:
    """Every query visits so many of its best clusters."""
    found = torch.zeros_like(logs, dtype=torch.bool)
    return found.scatter_(1, logs.topk(min(count, logs.shape[1]), dim=1).indices, value=True)


def doubt(query: Tensor, part: Part, scale: float) -> Tensor:
    """By what factor masses computed in float64 may be wrong themselves."""
    key = part.key[0, 0].double()
    key = key if part.scales is None else key * part.scales.key[0, 0, :, None].double()
    return (1e-9 + 2.0**-46 * scale * query.double().norm(dim=1) * key.norm(dim=1).max()).exp()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(TYPES),
    asked=st.sampled_from(["any", "along", "against", "far", "tiny", "smallest"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    dim=st.sampled_from(DIMS),
    scale=st.sampled_from([0.125, 1.0, 3.7]),
    softcap=st.sampled_from([None, None, 30.0, 2.0]),
    pairs=st.integers(1, 300),
    clusters=st.sampled_from([1, 4, 16]),
    count=st.integers(0, 17),
    seed=st.integers(0, 2**31),
)
def test_certify_is_never_below_the_truth(
    kind: str,
    number: str,
    asked: str,
    dtype: torch.dtype,
    dim: int,
    scale: float,
    softcap: float | None,
    pairs: int,
    clusters: int,
    count: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    part = memory(kind, number, pairs, dim, clusters)
    residuals = Residuals.of(part)
    query = queries_for(part, asked, 5, dtype)
    logs = by_cluster(true_scores(query, part, scale, softcap), part)
    visited = visited_by(logs, count)
    reference = logs.logsumexp(1)
    found = masses(query, part, residuals, 0, 0, scale=scale, softcap=softcap, reference=reference)
    true = (logs - reference[:, None]).exp()
    off = doubt(query, part, scale)
    assert (found.upper >= true / off[:, None]).all()
    assert (found.lower <= true * off[:, None]).all()
    share = missed(logs, visited) / off
    assert (missed_share(found, visited) >= share).all()
    # what the search has seen, as float32 at best
    lse = logs.masked_fill(~visited, -torch.inf).logsumexp(1).float()
    given = bound(query, part, residuals, lse, visited, scale=scale, softcap=softcap)
    assert (given >= share).all()
    assert (given <= 1).all()
    assert not given.isnan().any()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_certify_bounds_what_is_rounded_in_queries_and_scores(size: float) -> None:
    """Keys that 8 bits hold exactly leave nothing else to make up for it."""
    steps = torch.randint(-127, 128, (1, 1, 40, 64)).double()
    steps[..., 0] = 127
    key = (size / 127) * torch.cat([steps, -steps], 2)
    part = cluster(Part(key, key), 1)
    residuals = Residuals.of(part)
    assert residuals.beyond.max() < 1e-6 * size
    for query in (torch.randn(300, 64), torch.randint(-127, 128, (300, 64)).float()):
        scores = true_scores(query, part, 0.2 / size, None)
        reference = scores.logsumexp(1)
        given = {"scale": 0.2 / size, "reference": reference}
        found = masses(query, part, residuals, 0, 0, **given)
        assert (found.upper >= 1).all()
        assert (found.lower <= 1).all()
        assert (found.upper < 1.05).all()


def real_memory(number: str = "bfloat16", pairs: int = 4000) -> Part:
    return memory("clustered", number, pairs, 64, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", TYPES)
def test_certify_is_near_the_truth_on_clustered_keys(number: str, dtype: torch.dtype) -> None:
    part = real_memory(number)
    query, scale = queries_for(part, "any", 60, dtype), 0.25
    logs = by_cluster(true_scores(query, part, scale, None), part)
    for count in (4, 8, 16):
        visited = visited_by(logs, count)
        lse = logs.masked_fill(~visited, -torch.inf).logsumexp(1).float()
        found = bound(query, part, Residuals.of(part), lse, visited, scale=scale)
        share = missed(logs, visited)
        assert (found >= share).all()
        assert (found / share).mean() < 1.2
        assert (found / share).max() < 1.5


def test_certify_of_all_clusters_misses_nothing_and_of_none_all() -> None:
    part = real_memory("float32", 500)
    query = queries_for(part, "any", 3, torch.float32)
    every = torch.ones(3, 32, dtype=torch.bool)
    lse = true_scores(query, part, 0.25, None).logsumexp(1).float()
    residuals = Residuals.of(part)
    assert (bound(query, part, residuals, lse, every, scale=0.25) == 0).all()
    nothing = torch.full((3,), -torch.inf)
    assert (bound(query, part, residuals, nothing, ~every, scale=0.25) == 1).all()


def test_certify_counts_no_padding_and_keeps_lines_apart() -> None:
    torch.manual_seed(3)
    key, value = torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    valid = torch.rand(2, 300) < 0.6
    key = torch.where(valid[:, None, :, None], key, 100.0)
    part = cluster(Part(key, value, valid, (0, 1)), 8)
    residuals = Residuals.of(part)
    query, scale = torch.randn(4, 64), 0.25
    for line in range(2):
        for kv_head in range(2):
            scores = scale * query.double() @ key[line, kv_head][valid[line]].double().T
            own = {"scale": scale, "reference": scores.logsumexp(1)}
            found = masses(query, part, residuals, line, kv_head, **own)
            total = found.upper.sum(1)
            assert (total >= 1).all()
            assert (total < 1.2).all()
            assert (found.lower.sum(1) <= 1).all()
            assert (found.lower.sum(1) > 0.7).all()


def test_certify_in_many_blocks_gives_the_same_masses(monkeypatch: pytest.MonkeyPatch) -> None:
    part = real_memory("float32", 9000)
    residuals = Residuals.of(part)
    query = queries_for(part, "any", 70, torch.float32)
    own = {"scale": 0.25, "reference": torch.zeros(70)}
    whole = masses(query, part, residuals, 0, 0, **own)
    monkeypatch.setattr(certificate, "_SCORES", 1)
    monkeypatch.setattr(certificate, "_QUERIES", 7)
    for one, other in zip(whole, masses(query, part, residuals, 0, 0, **own), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_certify_says_one_where_numbers_overflow() -> None:
    key = torch.randn(1, 2, 50, 64, dtype=torch.float64) * 1e200
    part = cluster(Part(key, key), 4)
    assert part.clusters is not None
    # what is not visited is where the keys are
    visited = (part.clusters.sizes[0, 0] == 0).expand(2, 4)
    for query in (torch.randn(2, 64), torch.full((2, 64), torch.inf)):
        for lse in (0.0, torch.inf, torch.nan):
            given = bound(
                query, part, Residuals.of(part), torch.full((2,), lse), visited, scale=1.0
            )
            assert (given == 1).all()


def test_residuals_bound_every_key() -> None:
    part = real_memory("bfloat16", 700)
    residuals = Residuals.of(part)
    assert part.clusters is not None
    for kv_head in range(2):
        sizes = part.clusters.sizes[0, kv_head]
        own = torch.arange(len(sizes)).repeat_interleave(sizes)
        centre = part.clusters.centroids[0, kv_head][own].double()
        steps = residuals.steps[0, kv_head].double() * residuals.scale[0, kv_head, :, None].double()
        left = (part.key[0, kv_head].double() - centre - steps).norm(dim=1)
        beyond = residuals.beyond[0, kv_head]
        assert (left <= beyond).all()
        assert (beyond < 1.001 * left + 1e-9).all()
        assert (steps.norm(dim=1) <= residuals.farthest[0, kv_head][own]).all()
        assert (beyond <= residuals.most_beyond[0, kv_head][own]).all()
        norms = part.key[0, kv_head].double().norm(dim=1)
        assert norms.max() <= largest_key(part, residuals, 0, kv_head)
    assert residuals.nbytes() == 2 * 700 * (64 + 8)


def exact_part() -> Part:
    """Two clusters whose centroids and 8 bits hold every key exactly, far from zero."""
    steps = torch.randint(-127, 128, (2, 20, 64)).float()
    steps[..., 5] = 127
    centroids = torch.zeros(2, 64)
    centroids[:, 1], centroids[1, 0] = 4096, 64
    key = (centroids[:, None] + torch.cat([steps, -steps], 1)).flatten(0, 1)[None, None]
    starts, order = torch.tensor([0, 40, 80]), torch.arange(80, dtype=torch.int32)
    own = (centroids, torch.ones(2), starts, order)
    return Part(key, key, clusters=Clusters(*(tensor[None, None] for tensor in own)))


def test_certify_takes_off_what_a_computed_sum_may_be_too_large() -> None:
    part, scale = exact_part(), 2e-4
    residuals = Residuals.of(part)
    query = torch.randint(-127, 128, (200, 64)).float()
    logs = by_cluster(true_scores(query, part, scale, None), part)
    visited = visited_by(logs, 1)
    off = lse_error(query, largest_key(part, residuals, 0, 0), 80, scale=scale)
    lse = logs.masked_fill(~visited, -torch.inf).logsumexp(1) + 0.999 * off
    found = bound(query, part, residuals, lse, visited, scale=scale)
    share = missed(logs, visited)
    assert (found >= share).all()
    assert (found < 1.02 * share).all()


def test_certify_does_without_sums_that_are_no_numbers() -> None:
    part = exact_part()
    query = torch.randint(-127, 128, (3, 64)).float()
    reference = true_scores(query, part, 2e-4, None).logsumexp(1)
    found = masses(query, part, Residuals.of(part), 0, 0, scale=2e-4, reference=reference)
    visited = torch.tensor([[True, False]] * 3)
    wrong = torch.tensor([torch.inf, torch.nan, 0.0])
    assert missed_share(found, visited, wrong).equal(missed_share(found, visited))
    assert (missed_share(found, visited) > 0).all()


def test_certify_trusts_no_sums_of_narrow_types() -> None:
    query = torch.randn(3, 64)
    assert (lse_error(query, 10.0, 1000, scale=0.125) < 1e-2).all()
    assert lse_error(query.bfloat16(), 10.0, 1000, scale=0.125).isinf().all()
    assert lse_error(query, 10.0, 2**22, scale=0.125).isinf().all()


def test_certify_trusts_no_sums_in_float32_that_torch_may_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert lse_error(torch.randn(3, 64), 10.0, 1000, scale=0.125).isinf().all()


def test_certify_multiplies_whole_numbers_exactly() -> None:
    for pairs, dim, columns in ((1, 64, 2), (7, 100, 4), (300, 128, 130)):
        for sign in (-1, 1):
            steps = torch.randint(-127, 128, (pairs, dim)).to(torch.int8)
            steps[0] = 127
            digits = torch.randint(-127, 128, (dim, columns)).to(torch.int8)
            digits[:, 0] = sign * 127
            found = certificate._products(steps, digits)
            assert found.long().equal(steps.long() @ digits.long())


def test_certify_needs_no_integer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    part = real_memory("float32", 500)
    query = queries_for(part, "any", 3, torch.float32)
    own = {"scale": 0.25, "reference": torch.zeros(3)}
    found = masses(query, part, Residuals.of(part), 0, 0, **own)
    monkeypatch.setattr(certificate, "_is_exact_here", lambda: False)
    for one, other in zip(found, masses(query, part, Residuals.of(part), 0, 0, **own), strict=True):
        assert one.equal(other)


def test_cluster_of_has_an_entry_for_every_pair() -> None:
    part = real_memory("float32", 123)
    assert len(cluster_of(part)) == 123
