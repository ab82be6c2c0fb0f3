"""FAISS search over parts that are long enough to be indexed; the contract of every search is in test_searches.py."""

import sys
from typing import Any

import pytest
import torch
from faiss_sources import (
    DIM,
    HEADS,
    INDEXES,
    KV_HEADS,
    SCALE,
    TOP_K,
    answer,
    every_index,
    every_source,
    indexed,
    is_equal,
    one_line,
    oracle,
    pairs,
    queries,
)

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.memory import Part, dense, exact, faiss_search, make_search
from longfocus.memory.faiss_search import Faiss


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes for parts that a test can afford."""
    monkeypatch.setattr(faiss_search, "SHORTEST", 200)


@every_source
def test_faiss_flat_chooses_the_keys_of_the_exact_search(source: Any) -> None:
    parts, query, search = source(), queries(2), Faiss(TOP_K)
    assert any(indexed(search, parts))
    for softcap in (None, 3.0):
        is_equal(answer(search, query, parts, softcap), oracle(query, parts, softcap))


def test_faiss_rounding_decides_nothing_in_a_wider_type() -> None:
    torch.set_default_dtype(torch.float64)
    key, value = pairs(1, 600)
    # keys that float32 cannot tell apart
    key[:, :, 1:4] = key[:, :, :1] * (1 + 1e-12 * torch.arange(1, 4)[:, None])
    parts = [Part(key, value)]
    query = key[:, :, :1].repeat_interleave(HEADS // KV_HEADS, 1).contiguous()
    for top_k in (1, 2, 3):
        found = answer(Faiss(top_k), query, parts)
        expected = exact(query, parts, scale=SCALE, top_k=top_k)
        torch.testing.assert_close(found.output, expected.output, atol=1e-12, rtol=0)


@every_index
@every_source
def test_faiss_never_answers_nan_nor_sees_what_is_not_real(index: str, source: Any) -> None:
    parts = source()
    for part in parts:
        if part.valid is not None and part.scales is None:
            part.key.masked_fill_(~part.valid[:, None, :, None], 1e4)
    query = queries(2)
    found = answer(Faiss(TOP_K, index), query, parts)
    assert not found.output.isnan().any()
    assert not found.lse.isnan().any()
    assert (found.lse <= dense(query, parts, scale=SCALE).lse + 1e-5).all()
    assert found.lse.isneginf().equal(dense(query, parts, scale=SCALE).lse.isneginf())


@pytest.mark.parametrize("index", INDEXES[1:])
def test_faiss_indexes_that_look_at_few_keys_find_most_of_the_best(index: str) -> None:
    part, query = one_line()[0], queries(2, 40)
    wanted = part.search(query, TOP_K, scale=SCALE).positions
    indexed_part = Faiss(TOP_K, index)._indexed(part, 1)[0]
    assert type(indexed_part) is not Part
    found = indexed_part.search(query, TOP_K, scale=SCALE).positions
    hits = (wanted[..., None] == found[..., None, :]).any(-1).float().mean()
    assert hits > 0.9


@every_index
def test_a_faiss_search_for_more_keys_than_there_are_is_dense(index: str) -> None:
    parts, query = [*one_line(), Part(*pairs(1, 1))], queries(2)
    # so many lists that every pair is looked at only if none is left out
    found = answer(Faiss(5000, index, retain=0.999999), query, parts)
    is_equal(found, dense(query, parts, scale=SCALE))


def test_faiss_with_a_level_looks_at_more_until_it_keeps_it() -> None:
    key, value = torch.randn(1, KV_HEADS, 2000, DIM), torch.randn(1, KV_HEADS, 2000, DIM)
    parts, query = [Part(key, value)], 0.5 * torch.randn(2, HEADS, 70, DIM)
    search = Faiss(TOP_K, "HNSW16", retain=0.95)
    found = answer(search, query, parts)
    kept = (found.lse - dense(query, parts, scale=SCALE).lse).exp()
    assert kept.mean() > 0.95
    report = search.audit.report()
    assert report is not None
    assert report.widened > 3
    assert report.mean >= 0.95


def test_faiss_keeps_gradients_where_an_audit_would_look_at_more() -> None:
    torch.set_default_dtype(torch.float64)
    part = Part(torch.randn(1, KV_HEADS, 900, DIM), torch.randn(1, KV_HEADS, 900, DIM))
    query = (0.1 * torch.randn(1, HEADS, 3, DIM)).requires_grad_()
    search = Faiss(TOP_K, retain=0.99)
    gradient = torch.autograd.grad(answer(search, query, [part]).lse.sum(), query)[0]
    expected = torch.autograd.grad(oracle(query, [part]).lse.sum(), query)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=0)
    assert search.audit.report() is None


def test_faiss_flat_in_a_config_answers_as_the_paper_and_says_what_that_keeps() -> None:
    config = FocusConfig(memory_layers=(0,), window=8, search="faiss", top_k=TOP_K)
    search = make_search(config)
    parts, query = one_line(), torch.randn(2, HEADS, 5, DIM)
    is_equal(answer(search, query, parts), oracle(query, parts))
    assert isinstance(search, Faiss)
    report = search.audit.report()
    assert report is not None
    assert report.widened == 0
    assert report.mean < 0.9


def test_faiss_with_another_index_in_a_config_holds_the_level_of_the_config() -> None:
    config = FocusConfig(
        memory_layers=(0,), window=8, search="faiss", index="HNSW16", top_k=TOP_K, retain=0.9
    )
    search = make_search(config)
    assert isinstance(search, Faiss)
    assert search.index == "HNSW16"
    assert search.audit.retain == 0.9


def test_gradients_flow_through_the_keys_that_faiss_found() -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = one_line(), queries(1).requires_grad_()
    weight = torch.randn_like(query)
    found, expected = (
        torch.autograd.grad((ask(query, parts).output * weight).sum(), query)[0]
        for ask in (lambda q, p: answer(Faiss(TOP_K), q, p), oracle)
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("index", ["nonsense", "IVF", "LSH", "PQ7", "IVF99999999999999,Flat"])
def test_a_faiss_index_that_is_not_known_is_refused_at_the_first_call(index: str) -> None:
    search = Faiss(TOP_K, index)
    with pytest.raises(LongFocusError, match=f"cannot make the index '{index}'.*Allowed are"):
        answer(search, queries(1), [Part(*pairs(1, 1))])


def test_an_index_that_is_no_string_is_refused() -> None:
    for index in ("", None, 32):
        with pytest.raises(LongFocusError, match="FAISS factory string"):
            FocusConfig(memory_layers=(0,), window=8, search="faiss", index=index)  # pyrefly: ignore


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(LongFocusError, match=r"longfocus\[faiss\]"):
        Faiss(TOP_K)
