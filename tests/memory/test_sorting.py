"""Pairs that are sorted by clusters: each is kept once with all that belongs to it, and can be put back."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sorted_parts import (
    DIM,
    KV_HEADS,
    LINES,
    assert_same,
    clusters_of,
    every_kind,
    every_padding,
    fields_of,
    numbers,
    part_of,
)

from longfocus.memory import Part, sorting
from longfocus.memory.clusters import Clusters, assign, count_for
from longfocus.memory.quantized import Scales
from longfocus.memory.sorting import cluster, in_order, room, side_by_side


@every_padding
@every_kind
@pytest.mark.parametrize("pairs", [0, 1, 2, 203])
def test_sorting_can_be_taken_back(pairs: int, kind: torch.dtype, padding: str) -> None:
    part = part_of(pairs, kind, padding)
    made = cluster(part)
    assert made.rows == part.rows
    assert_same(in_order(made), part)
    for own in (slice(0, 1), slice(50, 90), slice(190, None)):
        valid = None if part.valid is None else part.valid[:, own]
        scales = None if part.scales is None else Scales(*(s[:, :, own] for s in part.scales))
        wanted = Part(part.key[:, :, own], part.value[:, :, own], valid, part.rows, scales)
        assert_same(in_order(made, own), wanted)


@every_padding
@every_kind
def test_every_pair_lies_in_the_cluster_of_its_key(kind: torch.dtype, padding: str) -> None:
    part = part_of(kind=kind, padding=padding)
    made = cluster(part, 8)
    own = clusters_of(made)
    for line in range(LINES):
        real = len(part) if part.valid is None else int(part.valid[line].sum())
        for head in range(KV_HEADS):
            starts = own.starts[line, head]
            assert starts[0] == 0
            assert starts[-1] == real
            assert own.sizes[line, head].sum() == real
            order = own.order[line, head].long()
            assert order.sort().values.equal(torch.arange(len(part)))
            assert own.places[line, head][order].equal(torch.arange(len(part)))
            assert made.key[line, head].equal(part.key[line, head, order])
            assert made.value[line, head].equal(part.value[line, head, order])
            # within a cluster, and among padding, the old order
            bounds = [*starts.tolist(), len(part)]
            for start, stop in pairwise(bounds):
                assert order[start:stop].equal(order[start:stop].sort().values)
            if part.valid is not None:
                assert part.valid[line, order].equal(torch.arange(len(part)) < real)


def test_keys_and_values_lie_side_by_side() -> None:
    for kind in (torch.float32, torch.int8):
        made = cluster(part_of(kind=kind))
        both = side_by_side(made.key, made.value)
        assert both.is_contiguous()
        assert both.data_ptr() == made.key.data_ptr()
        assert both[..., 0, :].equal(made.key)
        assert both[..., 1, :].equal(made.value)
    assert made.scales is not None
    scales = side_by_side(*made.scales)
    assert scales.data_ptr() == made.scales.key.data_ptr()
    assert scales.equal(torch.stack(list(made.scales), 3))


def test_pairs_that_lie_apart_are_put_side_by_side() -> None:
    part = part_of()
    both = side_by_side(part.key, part.value)
    assert both.equal(torch.stack([part.key, part.value], 3))
    key, value, scales = room((1, 2, 5, DIM), torch.int8, torch.device("cpu"))
    assert scales is not None
    for pairs, other in ((key, value), (scales.key, scales.value)):
        assert pairs.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_every_kv_head_and_line_has_an_order_of_its_own() -> None:
    own = clusters_of(cluster(part_of(padding="none"), 8))
    orders = own.order.flatten(0, 1)
    for one in range(len(orders)):
        for other in range(one):
            assert not orders[one].equal(orders[other])


@every_kind
def test_sorting_the_same_gives_the_same_whatever_was_random_before(kind: torch.dtype) -> None:
    part = part_of(kind=kind)
    one = cluster(part)
    torch.rand(7)
    assert_same(one, cluster(part))
    assert_same(one, cluster([part]))


def test_a_part_is_sorted_once() -> None:
    made = cluster(part_of())
    assert cluster(made) is made
    assert cluster([made]) is made


def cut(part: Part, own: slice) -> Part:
    valid = None if part.valid is None else part.valid[:, own]
    scales = None if part.scales is None else Scales(*(s[:, :, own] for s in part.scales))
    return Part(part.key[:, :, own], part.value[:, :, own], valid, part.rows, scales)


@every_padding
@every_kind
def test_merging_equals_sorting_all_with_the_clusters_of_the_first(
    kind: torch.dtype, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "RETRAIN_GROWTH", 4)
    part = part_of(kind=kind, padding=padding)
    main = cluster(cut(part, slice(0, 120)), 8)
    both = cluster([main, cut(part, slice(120, 170)), cut(part, slice(170, None))])
    assert len(clusters_of(both)) == 8
    assert_same(in_order(both), part)
    own = clusters_of(both)
    centroids = clusters_of(main).centroids
    keys = numbers(both)
    for line in range(LINES):
        for head in range(KV_HEADS):
            named = {
                int(place): number
                for number, (start, stop) in enumerate(_bounds(own, line, head))
                for place in own.order[line, head, start:stop]
            }
            for number, (start, stop) in enumerate(_bounds(clusters_of(main), line, head)):
                # what was in a cluster stays in it
                for place in clusters_of(main).order[line, head, start:stop]:
                    assert named[int(place)] == number
            late = [p for p in range(120, len(part)) if p in named]
            given = part.own_keys(line, head, torch.tensor(late, dtype=torch.long))
            nearest = assign(given, centroids[line, head]).tolist()
            assert [named[place] for place in late] == nearest
            for number, (start, stop) in enumerate(_bounds(own, line, head)):
                if start < stop:
                    mean = keys[line, head, start:stop].mean(0)
                    found = own.centroids[line, head, number].double()
                    torch.testing.assert_close(found, mean, atol=2e-2, rtol=0)


def _bounds(clusters: Clusters, line: int, head: int) -> list[tuple[int, int]]:
    starts = clusters.starts[line, head].tolist()
    return list(pairwise(starts))


def test_clusters_that_stay_empty_keep_their_place() -> None:
    part = part_of(20, padding="none")
    few = replace(part, key=part.key[:, :, torch.arange(20) % 5])
    main = cluster(few, 16)
    sizes = clusters_of(main).sizes
    assert (sizes == 0).sum(-1).eq(11).all()
    both = cluster([main, part_of(1, padding="none")])
    grown = clusters_of(both).sizes - sizes
    assert (grown.sum(-1) == 1).all()
    same = grown == 0
    before, after = clusters_of(main).centroids[same], clusters_of(both).centroids[same]
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


def test_clusters_are_trained_again_when_there_should_be_so_many_times_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sorting, "RETRAIN_GROWTH", 4)
    part = part_of(1024, padding="none")
    main = cluster(cut(part, slice(0, 90)))
    assert len(clusters_of(main)) == 8
    some = cluster([main, cut(part, slice(90, 400))])
    assert count_for(400) == 16
    assert len(clusters_of(some)) == 8
    more = cluster([some, cut(part, slice(400, None))])
    assert len(clusters_of(more)) == count_for(1024) == 32
    assert_same(in_order(more), part)
    assert not clusters_of(more).centroids[:, :, :8].equal(clusters_of(some).centroids)


def test_moving_little_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "RETRAIN_GROWTH", 4)
    for kind in (torch.float32, torch.int8):
        part = part_of(kind=kind)
        main = cluster(cut(part, slice(0, 120)), 8)
        tail = cut(part, slice(120, None))
        expected = cluster([main, tail])
        with monkeypatch.context() as patch:
            patch.setattr(sorting, "_MOVED", 5 * DIM)
            found = cluster([main, tail])
            alone = cluster(cut(part, slice(0, 120)), 8)
        assert in_order(found).key.equal(part.key)
        assert clusters_of(found).order.equal(clusters_of(expected).order)
        assert clusters_of(alone).order.equal(clusters_of(main).order)
        torch.testing.assert_close(
            clusters_of(found).spread, clusters_of(expected).spread, atol=1e-4, rtol=1e-4
        )


def test_lines_are_sorted_as_if_they_were_alone() -> None:
    part = part_of(padding="a whole line")
    assert part.valid is not None
    together = clusters_of(cluster(part, 8))
    for line in range(LINES):
        own = slice(line, line + 1)
        alone = Part(part.key[own], part.value[own], part.valid[own])
        found = fields_of(clusters_of(cluster(alone, 8)))
        for one, both in zip(found, fields_of(together), strict=True):
            assert one.equal(both[own])


def test_padding_is_not_trained_on() -> None:
    part = part_of()
    assert part.valid is not None
    wild = replace(part, key=part.key.masked_fill(~part.valid[:, None, :, None], 1e4))
    one, other = clusters_of(cluster(part, 8)), clusters_of(cluster(wild, 8))
    assert one.centroids.equal(other.centroids)
    assert one.order.equal(other.order)


def test_a_part_that_was_cut_in_pieces_is_trained_as_a_whole() -> None:
    part = part_of(padding="some")
    pieces = [cut(part, own) for own in (slice(0, 60), slice(60, 61), slice(61, None))]
    one, other = cluster(part, 8), cluster(pieces, 8)
    assert one.key.equal(other.key)
    assert clusters_of(one).order.equal(clusters_of(other).order)
