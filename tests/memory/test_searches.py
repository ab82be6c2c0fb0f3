"""The contract of every search over everything that can be searched: a new search is one line in ORACLE_TOP_K."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sources import DIM, HEADS, ROWS, SOURCES, Together, plain
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core.attention import Partial
from longfocus.memory import SEARCHES, Part, Search, make_search

SCALE, TOP_K, QUERIES = 0.5, 5, 7

# How many of the best pairs a search attends to when it is asked for TOP_K of them; None: to all.
ORACLE_TOP_K: dict[str, int | None] = {
    "dense": None,
    "exact": TOP_K,
    "clustered": None,
    "faiss": TOP_K,
}

Source = Callable[[], list[Part]]
every_search = pytest.mark.parametrize("name", SEARCHES)
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
every_type = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)


def search_of(name: Any, top_k: int = TOP_K) -> Search:
    return make_search(FocusConfig(memory_layers=(0,), window=8, search=name, top_k=top_k))


def queries(rows: int = ROWS) -> Tensor:
    return 2 * torch.randn(rows, HEADS, QUERIES, DIM)


def close(found: Partial, expected: Partial, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_the_contract_covers_every_search() -> None:
    assert set(ORACLE_TOP_K) == set(SEARCHES)


@every_type
@every_source
@every_search
def test_a_search_equals_attention_over_its_best_pairs_side_by_side(
    name: str, source: Source, dtype: torch.dtype, tolerance: float
) -> None:
    torch.set_default_dtype(dtype)
    parts, query = source(), queries()
    for softcap in (None, 1.5):
        with torch.no_grad():
            found = search_of(name)(query, parts, scale=SCALE, softcap=softcap)
        expected = plain(query, parts, scale=SCALE, softcap=softcap, top_k=ORACLE_TOP_K[name])
        close(found, Partial(*(tensor.detach() for tensor in expected)), tolerance)


@every_source
@every_search
def test_a_search_has_the_gradients_of_attention_over_its_best_pairs(
    name: str, source: Source
) -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = source(), queries().requires_grad_()
    leaves = [
        query,
        *{id(t): t for p in parts for t in (p.key, p.value) if t.requires_grad}.values(),
    ]

    def gradients(found: Partial) -> tuple[Tensor | None, ...]:
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(found.output.shape, generator=generator)
        seen = found.lse.masked_fill(found.lse.isinf(), 0.0)
        loss = (found.output * weight).sum() + seen.sum() + 0 * query.sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    ours = gradients(search_of(name)(query, parts, scale=SCALE))
    theirs = gradients(plain(query, parts, scale=SCALE, softcap=None, top_k=ORACLE_TOP_K[name]))
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@every_source
@every_search
def test_a_top_k_beyond_the_memory_is_dense(name: str, source: Source) -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = source(), queries()
    size = sum(map(len, parts))
    for top_k in (max(size, 1), size + 1, 1000):
        found = search_of(name, top_k)(query, parts, scale=SCALE)
        dense = search_of("dense")(query, parts, scale=SCALE)
        close(found, dense, 1e-12)


@every_source
@every_search
def test_parts_answer_as_one_part_of_all_their_pairs(name: str, source: Source) -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = source(), queries()
    both = Together(parts)
    one = [Part(both.key, both.value, both.valid, tuple(range(ROWS)))]
    found = search_of(name)(query, parts, scale=SCALE)
    close(found, search_of(name)(query, one, scale=SCALE), 1e-12)
    close(found, search_of(name)(query, parts[::-1], scale=SCALE), 1e-12)


@every_search
def test_rows_that_share_a_line_answer_as_if_each_had_a_copy(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    key, value = (torch.randn(2, 2, 20, DIM) for _ in range(2))
    valid = torch.rand(2, 20) < 0.7
    query = queries(5)
    for rows in ((0, 1, 1, 0, 1), (1, 1, 1, 1, 1), (1, 0, 0, 0, 0)):
        own = list(rows)
        copies = Part(key[own], value[own], valid[own], tuple(range(5)))
        found = search_of(name)(query, [Part(key, value, valid, rows)], scale=SCALE)
        close(found, search_of(name)(query, [copies], scale=SCALE), 1e-12)


@every_search
def test_a_document_serves_any_number_of_rows(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    part = Part(*(torch.randn(1, 2, 20, DIM) for _ in range(2)))
    query = queries(4)
    together = search_of(name)(query, [part], scale=SCALE)
    for row in range(4):
        alone = search_of(name)(query[row : row + 1], [part], scale=SCALE)
        close(Partial(*(t[row : row + 1] for t in together)), alone, 1e-12)


@every_search
def test_pairs_that_are_not_real_may_hold_anything(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    key, value = (torch.randn(ROWS, 2, 20, DIM) for _ in range(2))
    valid = torch.arange(20) >= torch.tensor([[3], [0], [12]])
    part = Part(key, value, valid, tuple(range(ROWS)))
    wild = replace(part, key=key.masked_fill(~valid[:, None, :, None], 1e6))
    query = queries()
    found = search_of(name)(query, [wild], scale=SCALE)
    close(found, search_of(name)(query, [part], scale=SCALE), 1e-12)


def test_hits_are_the_best_visible_keys_best_first() -> None:
    torch.set_default_dtype(torch.float64)
    key, value = (torch.randn(1, 2, 300, DIM) for _ in range(2))
    valid = torch.rand(1, 300) < 0.5
    query = queries(2)
    hits = Part(key, value, valid).search(query, 9, scale=SCALE)
    scores = SCALE * query @ key.repeat_interleave(HEADS // 2, 1).mT
    best = scores.masked_fill(~valid[:, None, None], -torch.inf).topk(9, dim=-1)
    torch.testing.assert_close(hits.scores, best.values, atol=1e-12, rtol=0)
    assert hits.positions.equal(best.indices)
    few = Part(key[:, :, :4], value[:, :, :4], torch.tensor([[True, False, True, False]]))
    hits = few.search(query, 9, scale=SCALE)
    assert hits.scores.shape[-1] == 4
    assert hits.scores[..., 2:].isneginf().all()


def test_a_scan_in_many_blocks_finds_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    part, query = Part(*(torch.randn(1, 2, 1000, DIM) for _ in range(2))), queries()
    whole = part.search(query, 10, scale=SCALE)
    monkeypatch.setattr("longfocus.memory.base.SEARCH_ELEMENTS", 1)
    blocks = part.search(query, 10, scale=SCALE)
    assert blocks.positions.equal(whole.positions)
    torch.testing.assert_close(blocks.scores, whole.scores)


def test_taken_pairs_are_those_at_the_places_of_the_row_and_the_head() -> None:
    part = Part(*(torch.randn(2, 2, 20, DIM) for _ in range(2)), None, (1, 0, 1))
    positions = torch.randint(0, 20, (3, HEADS, 4, 5))
    key, value = part.take(positions, torch.get_default_dtype())
    assert key.shape == value.shape == (3, HEADS, 4, 5, DIM)
    for row, head, query, k in ((0, 0, 0, 0), (1, 5, 3, 4), (2, 2, 1, 3), (2, 3, 1, 3)):
        place = part.rows[row], head // 3, positions[row, head, query, k]
        assert key[row, head, query, k].equal(part.key[place])
        assert value[row, head, query, k].equal(part.value[place])
