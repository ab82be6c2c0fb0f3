"""Clusters of keys: trained, assigned and described as the formulas say, also where there is little to tell apart."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sorted_parts import (
    DIM,
    KV_HEADS,
    LINES,
    clusters_of,
    every_kind,
    every_padding,
    numbers,
    part_of,
)

from longfocus.memory import Part
from longfocus.memory.clusters import assign, count_for, sample_of, train
from longfocus.memory.sorting import cluster


@every_padding
@every_kind
def test_means_and_spreads_are_those_of_the_keys(kind: torch.dtype, padding: str) -> None:
    made = cluster(part_of(kind=kind, padding=padding), 8)
    own, keys = clusters_of(made), numbers(made)
    assert own.centroids.dtype == own.spread.dtype == torch.float32
    for line in range(LINES):
        for head in range(KV_HEADS):
            bounds = own.starts[line, head].tolist()
            for place, (start, stop) in enumerate(pairwise(bounds)):
                some = keys[line, head, start:stop]
                if start == stop:
                    continue
                # int8 keys are clustered as bfloat16
                tolerance = 2e-2 if kind == torch.int8 else 1e-4
                mean = own.centroids[line, head, place].double()
                torch.testing.assert_close(mean, some.mean(0), atol=tolerance, rtol=tolerance)
                spread = (some - some.mean(0)).square().sum(-1).mean()
                found = own.spread[line, head, place].double()
                torch.testing.assert_close(found, spread, atol=10 * tolerance, rtol=tolerance)


def test_equal_keys_have_one_cluster_without_spread() -> None:
    key = torch.full((1, 1, 100, DIM), 3.0)
    made = cluster(Part(key, torch.randn_like(key)), 8)
    own = clusters_of(made)
    assert own.sizes[0, 0].sort().values.tolist() == [0] * 7 + [100]
    full = own.sizes[0, 0] > 0
    assert own.centroids[0, 0][full].equal(key[0, 0, :1])
    assert own.spread.isfinite().all()
    torch.testing.assert_close(own.spread[0, 0][full], torch.zeros(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pairs", [1, 3])
def test_fewer_keys_than_clusters_find_one_each(pairs: int) -> None:
    made = cluster(part_of(pairs, padding="none"), 8)
    assert (clusters_of(made).sizes <= 1).all()
    torch.testing.assert_close(
        clusters_of(made).spread, torch.zeros(LINES, KV_HEADS, 8), atol=1e-5, rtol=0
    )


def test_a_line_of_padding_has_clusters_with_nothing_in_them() -> None:
    part = part_of(padding="a whole line")
    part = replace(part, key=part.key.clone())
    part.key[1] = float("inf")
    own = clusters_of(cluster(part, 8))
    assert own.starts[1].eq(0).all()
    assert own.centroids.isfinite().all()
    assert own.spread.isfinite().all()
    assert own.log_mass(torch.randn(5, DIM), 1, 0).isneginf().all()


def test_distant_groups_of_keys_are_told_apart() -> None:
    groups = 100 * torch.randn(8, DIM)
    names = torch.arange(400) % 8
    keys = groups[names] + torch.randn(400, DIM)
    centroids = train(keys[:256], 8)
    nearest = assign(keys, centroids)
    # k-means may join two groups and split a third, but never splits hairs
    assert len(set(zip(names.tolist(), nearest.tolist(), strict=True))) <= 16
    distances = torch.cdist(keys.double(), centroids.double())
    chosen = distances.gather(1, nearest[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), atol=1e-3, rtol=0)


def test_clusters_are_the_power_of_two_next_to_the_root() -> None:
    found = [count_for(pairs) for pairs in (0, 1, 2, 16, 300, 1024, 2**20)]
    assert found == [1, 1, 1, 4, 16, 32, 1024]


def test_a_sample_holds_no_key_twice() -> None:
    some = sample_of(5000, 4)
    assert len(some) == 128
    assert len(some.unique()) == 128
    assert some.equal(sample_of(5000, 4))
    assert sample_of(50, 4).sort().values.equal(torch.arange(50))


def test_the_nearest_centroid_is_found_however_few_keys_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, centroids = torch.randn(300, DIM), torch.randn(20, DIM)
    expected = torch.cdist(keys.double(), centroids.double()).argmin(1)
    assert assign(keys, centroids).equal(expected)
    monkeypatch.setattr("longfocus.memory.clusters._SCORES", 1)
    assert assign(keys, centroids).equal(expected)


def test_training_from_nothing_gives_centroids_all_the_same() -> None:
    assert train(torch.empty(0, DIM), 4).equal(torch.zeros(4, DIM))


def test_expected_mass_of_gaussian_keys_is_their_mass() -> None:
    torch.set_default_dtype(torch.float64)
    part = Part(torch.randn(1, 1, 200_000, DIM) + 1, torch.zeros(1, 1, 200_000, DIM))
    own, query = clusters_of(cluster(part, 1)), torch.randn(5, DIM) / 2
    found = own.log_mass(query, 0, 0)[:, 0]
    truth = (query @ part.key[0, 0].mT).logsumexp(1)
    torch.testing.assert_close(found.double(), truth, atol=2e-2, rtol=0)
