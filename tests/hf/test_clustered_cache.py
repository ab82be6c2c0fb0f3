"""A conversation whose memory is sorted by clusters says what one says whose memory is not."""

from typing import Any

import pytest
import torch
from attached import PADDING, WINDOW, attached, text
from generation import ENTRY, GREEDY, SETTINGS, TOLERANCE, assert_close, perturbed, prompt, steps
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import tiny_model
from long import mostly_long
from longfocus import FocusCache
from longfocus.hf.cache_state import cache_state, restore_cache
from longfocus.memory import clustered, sorting, store
from longfocus.memory.audit import Audit, Width
from longfocus.memory.clustered import Clustered

NEW = 41
LAYERS = ENTRY.memory_layers


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is worth sorting, into clusters that are visited 8 and 16 at a time, until all were."""
    monkeypatch.setattr(store, "SORTED_FROM", WINDOW)
    monkeypatch.setattr(store, "TAIL", WINDOW)
    monkeypatch.setattr(sorting, "count_for", lambda pairs: 16)
    monkeypatch.setattr(clustered, "DENSE_SHARE", 0.5)


def caches(model: PreTrainedModel, **more: Any) -> tuple[FocusCache, FocusCache]:
    """One that searches clusters until nothing is left, and a dense one."""
    made = FocusCache(model, search="clustered", retain=0.9999999, **more)
    return made, FocusCache(model, search="dense", **more)


def sorted_pairs(cache: FocusCache) -> int:
    """Of the conversation's own memory, in every memory layer."""
    found = {
        sum(len(part) for part in cache.windows[layer].store.parts() if part.clusters is not None)
        for layer in LAYERS
    }
    (count,) = found
    return count


def assert_same_memory(one: FocusCache, other: FocusCache) -> None:
    for layer in LAYERS:
        for what in (FocusCache.memory_keys, FocusCache.memory_values):
            torch.testing.assert_close(what(one, layer), what(other, layer), atol=1e-4, rtol=0)
        assert one.memory_valid(layer).equal(other.memory_valid(layer))


WAYS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "greedy": ((0,), {}),
    "rows with padding": (PADDING, {}),
    "beams": ((0,), {"num_beams": 3}),
    "beams of rows": ((0, 3), {"num_beams": 3}),
    "several answers": ((0, 3), {"num_beams": 3, "num_return_sequences": 2}),
}


@pytest.mark.parametrize("length", mostly_long([6, 50], 50))
@pytest.mark.parametrize("way", mostly_long(WAYS, "greedy", "rows with padding"))
def test_generation_equals_that_of_a_dense_memory(
    model: PreTrainedModel, way: str, length: int
) -> None:
    padding, settings = WAYS[way]
    given = {**prompt(length + max(padding), padding), **SETTINGS, **settings}
    one, other = (
        model.generate(**given, do_sample=False, max_new_tokens=NEW, past_key_values=cache)
        for cache in caches(model)
    )
    assert one.sequences.tolist() == other.sequences.tolist()
    assert_close(steps(one), steps(other))
    assert sorted_pairs(one.past_key_values) >= WINDOW
    assert_same_memory(one.past_key_values, other.past_key_values)


@pytest.mark.long
def test_answers_that_are_drawn_equal_those_of_a_dense_memory(model: PreTrainedModel) -> None:
    found = []
    for cache in caches(model):
        torch.manual_seed(3)
        found.append(
            model.generate(
                **prompt(40),
                **SETTINGS,
                do_sample=True,
                num_return_sequences=3,
                max_new_tokens=NEW,
                past_key_values=cache,
            )
        )
    assert found[0].sequences.tolist() == found[1].sequences.tolist()
    assert sorted_pairs(found[0].past_key_values) >= WINDOW


@pytest.mark.parametrize("length", mostly_long([5, 12, 30], 12))
def test_assisted_decoding_equals_greedy_decoding(model: PreTrainedModel, length: int) -> None:
    assistant = perturbed(tiny_model(ENTRY), 0.03)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    given = {**prompt(length), **GREEDY, "max_new_tokens": NEW}
    own, plain = caches(model)
    one = model.generate(**given, assistant_model=assistant, past_key_values=own)
    other = model.generate(**given, past_key_values=plain)
    assert one.sequences.tolist() == other.sequences.tolist()
    assert_close(steps(one), steps(other))
    assert sorted_pairs(own) >= WINDOW
    assert_same_memory(own, plain)


@pytest.mark.parametrize("removed", [1, 3, 4, 5, 16])
def test_tokens_are_taken_back_behind_what_is_sorted(model: PreTrainedModel, removed: int) -> None:
    input_ids, _ = text(4 * WINDOW + 3, (0,))
    logits = []
    for cache in caches(model):
        with torch.no_grad():
            for some in input_ids.split(WINDOW, 1):
                model(some, past_key_values=cache)
            cache.crop(-removed)
            again = text(2 * WINDOW, (0,))[0]
            logits.append(model(again, past_key_values=cache).logits)
    assert_close(*logits)


def test_forks_go_on_alone(model: PreTrainedModel) -> None:
    input_ids, _ = text(3 * WINDOW, (0,))
    found = []
    for cache in caches(model):
        with torch.no_grad():
            model(input_ids, past_key_values=cache)
            fork = cache.fork()
            logits = [
                model(text(size, (0,))[0], past_key_values=own).logits
                for own, size in ((fork, 30), (cache, 41), (fork, 20))
            ]
        found.append(logits)
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_a_cache_goes_on_with_what_another_has_learned(model: PreTrainedModel) -> None:
    searches = {layer: Clustered(audit=Audit(0.5)) for layer in LAYERS}
    cache = FocusCache(model, search="clustered", searches=searches)
    input_ids, _ = text(4 * WINDOW, (0,))
    with torch.no_grad():
        model(input_ids, past_key_values=cache)
    assert all(search.audit.report() is not None for search in searches.values())
    searches[LAYERS[0]].audit.width = Width(0.01, 24)
    other = FocusCache(model, search="clustered", searches=cache.searches)
    assert other.searches[LAYERS[0]] is searches[LAYERS[0]]
    assert cache.fork().searches is cache.searches
    fresh = FocusCache(model, search="clustered")
    assert not set(map(id, fresh.searches.values())) & set(map(id, searches.values()))
    assert len({id(search) for search in fresh.searches.values()}) == len(LAYERS)


def test_a_cache_of_a_batch_is_emptied(model: PreTrainedModel) -> None:
    cache, plain = caches(model)
    input_ids, mask = text(4 * WINDOW, PADDING)
    given = {"input_ids": input_ids, "attention_mask": mask}
    with torch.no_grad():
        for own in (cache, plain):
            model(**given, past_key_values=own)
        assert sorted_pairs(cache) > 0
        for own in (cache, plain):
            own.reset()
        assert not cache.has_memory()
        one, other = (model(**given, past_key_values=own).logits for own in (cache, plain))
    assert_close(one[mask.bool()], other[mask.bool()])
    assert sorted_pairs(cache) > 0


def state(cache: FocusCache) -> dict[str, Tensor]:
    return cache_state(cache)[0]


def test_a_state_that_was_saved_goes_on(model: PreTrainedModel) -> None:
    input_ids, _ = text(5 * WINDOW + 4, (0,))
    cache, plain = caches(model)
    with torch.no_grad():
        for some in input_ids.split(WINDOW, 1):
            for own in (cache, plain):
                model(some, past_key_values=own)
    assert sorted_pairs(cache) > 0
    tensors, facts = cache_state(cache)
    again = caches(model)[0]
    shape = (cache.memory_keys(LAYERS[0]).shape[1], cache.memory_keys(LAYERS[0]).shape[3])
    restore_cache(again, tensors, facts, shape)
    assert_same_memory(again, cache)
    more = text(3 * WINDOW, (0,))[0]
    with torch.no_grad():
        logits = [model(more, past_key_values=own).logits for own in (again, cache, plain)]
    assert_close(logits[0], logits[2])
    assert_close(logits[1], logits[2])
    assert sorted_pairs(again) >= 5 * WINDOW
    assert_same_memory(again, plain)


@pytest.mark.long
def test_documents_and_a_conversation_are_searched_together(model: PreTrainedModel) -> None:
    told = text(90, (0,))[0][0]
    document = longfocus.read_document(model, None, told, "numbers")
    part = {layer: sorting.cluster(own) for layer, own in document.layers.items()}
    longer = longfocus.read_document(model, None, told.flip(0), "more numbers")
    own = longfocus.DocumentMemory.of(
        name="numbers",
        layers=part,
        token_ids=document.token_ids,
        read_with=document.description.read_with,
    )
    given = {**prompt(30, PADDING), **GREEDY, "max_new_tokens": NEW}
    one = model.generate(**given, past_key_values=caches(model, documents=[own, longer])[0])
    other = model.generate(**given, past_key_values=caches(model, documents=[document, longer])[1])
    assert one.sequences.tolist() == other.sequences.tolist()
    assert (steps(one) - steps(other)).abs().max() < TOLERANCE
