"""Where a memory that is sorted by clusters was looked at is told in the order of the tokens."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from long import mostly_long
from longfocus import LongFocusError
from longfocus.core.runs import Runs
from longfocus.hf.trace import NEIGHBOURS, Looked, Trace
from longfocus.memory import Part, dense, exact
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

HEADS, KV_HEADS, DIM, QUERIES, SCALE = 6, 2, 8, 3, 0.7


def pairs(count: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(1, KV_HEADS, count, DIM) for _ in range(2))
    return key, value


def int8_part() -> Part:
    (key, by_key), (value, by_value) = (quantize(tensor) for tensor in pairs(150))
    return Part(key, value, scales=Scales(by_key, by_value))


def padded_part() -> Part:
    return Part(*pairs(200), torch.rand(1, 200) < 0.6, (0,))


# Longer and shorter than the neighbourhood of a focus score.
PARTS = {
    "one": lambda: [Part(*pairs(300))],
    "short": lambda: [Part(*pairs(NEIGHBOURS // 2)), Part(*pairs(1))],
    "several": lambda: [Part(*pairs(130)), int8_part(), Part(*pairs(NEIGHBOURS))],
    "with padding": lambda: [Part(*pairs(100)), padded_part()],
}


def traced(
    parts: Sequence[Part], query: Tensor, *, top_k: int | None = None, softcap: float | None = None
) -> Trace:
    """What was looked at by so many tokens in two layers."""
    trace = Trace(top=12, last=QUERIES)
    total = dense(query, parts, scale=SCALE, softcap=softcap).lse
    if top_k is not None:
        total = exact(query, parts, scale=SCALE, top_k=top_k).lse
    for layer in (1, 2):
        trace.begin(layer, 1, QUERIES)
        trace.look(layer, query, parts, total + 0.1, scale=SCALE, softcap=softcap, top_k=top_k)
    return trace


def assert_same(one: Looked, other: Looked) -> None:
    assert (one.layer, one.part, one.position) == (other.layer, other.part, other.position)
    for name in ("weight", "knn_score", "focus_score"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("softcap", mostly_long([None, 2.0], 2.0))
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("clusters", mostly_long([1, 9], 9))
@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_heat_positions_and_scores_are_those_of_the_unsorted_memory(
    make: object, clusters: int, top_k: int | None, softcap: float | None
) -> None:
    assert callable(make)
    parts, query = make(), 2 * torch.randn(1, HEADS, QUERIES, DIM)
    own = traced([cluster(p, clusters) for p in parts], query, top_k=top_k, softcap=softcap)
    plain = traced(parts, query, top_k=top_k, softcap=softcap)
    assert own.heat.keys() == plain.heat.keys()
    for number, heat in plain.heat.items():
        torch.testing.assert_close(own.heat[number], heat, atol=1e-6, rtol=1e-4)
    assert [len(looked) for looked in own.queries] == [len(looked) for looked in plain.queries]
    for mine, theirs in zip(own.queries, plain.queries, strict=True):
        assert len(mine) > 0
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)


def test_little_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, query = [cluster(Part(*pairs(300)), 9)], torch.randn(1, HEADS, QUERIES, DIM)
    whole = traced(parts, query)
    monkeypatch.setattr("longfocus.hf.trace._BLOCK_ELEMENTS", 70)
    monkeypatch.setattr("longfocus.hf.trace._HELD_ELEMENTS", 300)
    few = traced(parts, query)
    torch.testing.assert_close(few.heat[0], whole.heat[0], atol=1e-6, rtol=1e-4)
    for mine, theirs in zip(few.queries, whole.queries, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)


class Altered:
    """A file whose pairs were altered where no query has looked yet."""

    def verify(self) -> None:
        raise LongFocusError("altered")

    def verify_clusters(self) -> None:
        pass

    def announce(self, line: int, kv_head: int, runs: Runs) -> None:
        pass

    def fetch(self, line: int, kv_head: int, runs: Runs) -> None:
        pass


def test_what_no_query_visited_is_verified_before_it_is_told() -> None:
    part, query = cluster(Part(*pairs(300)), 9), torch.randn(1, HEADS, QUERIES, DIM)
    total = dense(query, [part], scale=SCALE).lse
    # heat alone, of which no entry is named
    trace = Trace(top=0, last=QUERIES)
    trace.begin(1, 1, QUERIES)
    with pytest.raises(LongFocusError, match="altered"):
        trace.look(1, query, [replace(part, file=Altered())], total, scale=SCALE)
