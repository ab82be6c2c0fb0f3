"""Peers compute what ours computes, and a ratio is refused where they do not."""

from dataclasses import replace

import pytest
import torch
from benching import SHAPE, TINY, measured

import longfocus
from longfocus.evaluation.speed import equality, kernels, models
from longfocus.evaluation.speed.peers.faiss_flat import FaissFlat
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.peers.published import Published
from longfocus.evaluation.speed.settings import R8, Shape

GROUPED = replace(SHAPE, kv_heads=2)
ONE_LAYER = replace(SHAPE, memory_layers=(3,))
EXACT = [torch.float32]


@pytest.mark.parametrize("shape", [SHAPE, GROUPED, ONE_LAYER], ids=["two", "grouped", "one"])
@pytest.mark.parametrize("is_eager", [False, True])
def test_the_published_rules_give_our_logits_token_by_token(shape: Shape, is_eager: bool) -> None:
    model = models.random_model(shape, torch.float32)
    ids, question = models.random_ids(3 * shape.window, 50), models.random_ids(10, 50, seed=1)
    document = longfocus.read_document(model, None, ids)
    cache = longfocus.FocusCache(model, documents=[document])
    peer = Published(model, is_eager=is_eager)
    read, filled = peer.read(ids), peer.filled(document)
    for token in question.split(3):
        with torch.inference_mode():
            ours = model(token[None], past_key_values=cache).logits
        for state in (read, filled):
            torch.testing.assert_close(peer.logits(token[None], state), ours, atol=1e-4, rtol=1e-4)


def test_full_attention_is_the_stock_model() -> None:
    model = models.random_model(SHAPE, torch.float32)
    stock = models.stock_copy(model, SHAPE)
    ids = models.random_ids(100, 50)
    peer = Full(stock)
    cache = peer.read(ids[:90])
    found = torch.cat([peer.logits(part[None], cache) for part in ids[90:].split(4)], 1)
    expected = stock(ids[None]).logits[:, 90:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert peer.bytes_per_token() * 100 == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
    )


def test_full_attention_stops_when_its_time_is_up() -> None:
    peer = Full(models.stock_copy(models.random_model(SHAPE), SHAPE))
    asked = []
    peer.read(models.random_ids(20, 50), lambda: asked.append(1))
    assert len(asked) == SHAPE.layers
    peer.read(models.random_ids(20, 50))
    assert len(asked) == SHAPE.layers


@pytest.mark.parametrize("shape", [SHAPE, GROUPED, ONE_LAYER], ids=["two", "grouped", "one"])
def test_the_checks_pass(shape: Shape) -> None:
    equality.check_published(shape)
    equality.check_full(shape)


@pytest.mark.long
def test_the_checks_pass_on_the_model_of_the_bench() -> None:
    equality.check_published(R8)
    equality.check_full(R8)


def test_the_checks_see_a_memory_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Published, "_remember", lambda self, state: state.local.clear())
    with pytest.raises(equality.Unequal, match="do not compute the same"):
        equality.check_published(SHAPE)


def test_the_checks_see_positions_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Published._with_memory

    def shifted(state, layer, key, value):
        keys, values = plain(state, layer, key, value)
        return keys.roll(1, 2), values

    monkeypatch.setattr(Published, "_with_memory", staticmethod(shifted))
    with pytest.raises(equality.Unequal):
        equality.check_published(SHAPE, EXACT)


def test_no_pair_is_timed_that_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Full, "logits", lambda self, ids, cache: torch.zeros(1, ids.shape[1], 50))
    with pytest.raises(equality.Unequal, match="No ratio is printed"):
        measured(TINY, "reading_64")


def test_a_search_that_finds_other_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FaissFlat.search

    def wrong(self, queries, k=32):
        scores, places = plain(self, queries, k)
        return scores, places.roll(1, 0)

    monkeypatch.setattr(FaissFlat, "search", wrong)
    with pytest.raises(equality.Unequal, match="FAISS"):
        measured(TINY, "kernel")


def test_a_search_that_keeps_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.searches, "RETAIN", 1.5)
    with pytest.raises(equality.Unequal, match="clustered search keeps"):
        measured(TINY, "window")


def test_a_result_that_is_not_a_number_is_not_equal() -> None:
    with pytest.raises(equality.Unequal):
        equality.check_same(torch.tensor([torch.nan]), torch.ones(1), 0.1, "These")
