"""FAISS search over memories that grow, are forked, cut and reordered: indexes are kept, and never out of date."""

import gc
from copy import deepcopy

import pytest
from faiss_sources import (
    HEADS,
    KV_HEADS,
    TOP_K,
    answer,
    every_index,
    indexed,
    is_equal,
    one_line,
    oracle,
    pairs,
    queries,
)
from torch import Tensor

from longfocus.memory import Store, faiss_search
from longfocus.memory.faiss_search import Faiss


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes for parts that a test can afford."""
    monkeypatch.setattr(faiss_search, "SHORTEST", 200)


@every_index
def test_faiss_finds_pairs_that_came_after_its_index(index: str) -> None:
    store, search = Store(), Faiss(TOP_K, index)
    sizes = []
    for _ in range(12):
        store.append(*pairs(2, 130))
        query = queries(2)
        # the last pairs are those that are looked for
        query[:, :, 0] = 2 * store.parts()[0].key[:, :, -1].repeat_interleave(HEADS // KV_HEADS, 1)
        parts = store.parts()
        expected = oracle(query[:, :, :1], parts)
        is_equal(answer(search, query[:, :, :1], parts), expected)
        sizes += indexed(search, parts)
    # nothing before SHORTEST, then in steps of more than a quarter
    # nothing before SHORTEST, then in steps of more than a quarter
    assert sizes == [0, 260, 390, 520, 520, 780, 780, 1040, 1040, 1040, 1430, 1430]


def test_a_faiss_index_is_trained_again_when_it_has_grown() -> None:
    store, search, found = Store(), Faiss(TOP_K, "IVF64,Flat"), []
    for _ in range(9):
        store.append(*pairs(1, 650))
        answer(search, queries(1), store.parts())
        front = search._indexed(store.parts()[0], 1)[0]
        index = search._indexes(store.parts()[0]).of(front, 0, 0)
        found.append((index._trained_on, type(index._index).__name__))
    # first too few to train on, then trained, then four times as many
    assert [trained for trained, _ in found] == [256, *[1300] * 6, 5200, 5200]
    assert [kind for _, kind in found] == ["IndexFlat", *["IndexIVFFlat"] * 8]


@every_index
def test_faiss_never_finds_pairs_that_were_taken_back(index: str) -> None:
    store, search = Store(), Faiss(TOP_K, index)
    store.append(*pairs(1, 600))
    store.append(*pairs(1, 600))
    query = queries(1)
    answer(search, query, store.parts())
    assert indexed(search, store.parts()) == [1200]
    store.undo_append()
    is_near(search, query, store)
    # others in their place, and then more of them than were there
    store.append(*(-other for other in pairs(1, 500)))
    is_near(search, -query, store)
    store.append(*(-other for other in pairs(1, 400)))
    is_near(search, -query, store)
    store.truncate(300)
    store.append(*(3 * other for other in pairs(1, 1000)))
    is_near(search, query, store)


def is_near(search: Faiss, query: Tensor, store: Store) -> None:
    """What is found holds nearly all that the best keys hold."""
    found, expected = answer(search, query, store.parts()).lse, oracle(query, store.parts()).lse
    assert (found <= expected + 1e-5).all()
    assert (found - expected).exp().mean() > 0.95


@every_index
def test_forks_that_share_faiss_indexes_find_their_own_pairs(index: str) -> None:
    store, search = Store(), Faiss(TOP_K, index)
    store.append(*pairs(1, 600))
    fork = store.fork()
    query = queries(1)
    for factor in (1, -1, 2):
        store.append(*(factor * own for own in pairs(1, 300)))
        fork.append(*(-factor * own for own in pairs(1, 250)))
        for own in (store, fork):
            is_near(search, query, own)
            is_near(search, -query, own)


def test_rows_that_change_places_keep_their_faiss_indexes() -> None:
    store, search = Store(), Faiss(TOP_K)
    store.append(*pairs(3, 400), lines=(0, 1, 2))
    query = queries(3)
    answer(search, query, store.parts())
    made = search._indexes(store.parts()[0])._made
    before = dict(made)
    store.select([2, 0, 0])
    is_equal(answer(search, query, store.parts()), oracle(query, store.parts()))
    assert search._indexes(store.parts()[0])._made is made
    assert made == before


def test_a_row_that_nobody_sees_gets_no_faiss_index() -> None:
    store, search = Store(), Faiss(TOP_K)
    store.append(*pairs(3, 400), lines=(0, 1, 2))
    store.select([2, 2])
    answer(search, queries(2), store.parts())
    assert set(search._indexes(store.parts()[0])._made) == {(2, 0), (2, 1)}


def test_faiss_indexes_go_with_the_pairs_that_they_belong_to() -> None:
    search = Faiss(TOP_K)
    store, part = Store(), one_line()[0]
    store.append(*pairs(1, 400))
    answer(search, queries(1), [*store.parts(), part])
    assert len(search._kept) == 2
    del store, part
    gc.collect()
    assert len(search._kept) == 0


def test_a_document_is_indexed_once() -> None:
    search, part = Faiss(TOP_K), one_line()[0]
    answer(search, queries(1), [part])
    made = dict(search._indexes(part)._made)
    answer(search, queries(1), [part])
    assert search._indexes(part)._made == made


def test_a_copy_of_a_faiss_search_makes_its_own_indexes() -> None:
    search, part = Faiss(TOP_K, "HNSW16", retain=0.9), one_line()[0]
    answer(search, queries(1), [part])
    copy = deepcopy(search)
    assert (copy.index, copy.audit.retain) == ("HNSW16", 0.9)
    assert not copy._kept
