"""Texts that are read under clustered search: sorted documents, whose keys are those that dense reading finds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from long import mostly_long
from longfocus import DocumentMemory, Session
from longfocus.inference import reader
from longfocus.memory import clustered, sorting, store
from longfocus.memory.clusters import Clusters
from longfocus.memory.sorting import in_order
from small import WINDOW, byte_tokenizer, small_model

TEXT = "The owl has nine keys, and the door has none. " * 9
every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 2)], (0, 2)), ids=str)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is worth sorting, into clusters that are visited 8 and 16 at a time, until all were."""
    monkeypatch.setattr(store, "SORTED_FROM", 3 * WINDOW)
    monkeypatch.setattr(store, "TAIL", WINDOW)
    monkeypatch.setattr(sorting, "count_for", lambda pairs: 16)
    monkeypatch.setattr(clustered, "DENSE_SHARE", 0.5)


def read(layers: tuple[int, ...], text: str = TEXT, **search: Any) -> DocumentMemory:
    return reader.Reading(small_model(layers), byte_tokenizer(), text, "owl", search=search).run()


def clusters_of(given: DocumentMemory) -> list[Clusters]:
    found = [part.clusters for part in given.layers.values()]
    assert all(own is not None for own in found)
    return [own for own in found if own is not None]


def in_reading_order(given: DocumentMemory) -> list[Tensor]:
    parts = [in_order(part) for part in given.layers.values()]
    return [tensor for part in parts for tensor in (part.key, part.value)]


@every_memory
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_read_under_clustered_search_is_sorted_and_else_the_same(
    layers: tuple[int, ...], dtype: str | None
) -> None:
    more = {} if dtype is None else {"memory_dtype": dtype}
    own = read(layers, search="clustered", retain=0.9999999, **more)
    plain = read(layers, search="dense", **more)
    assert own.description.clusters == 16
    assert plain.description.clusters == 0
    tolerance = 1e-5 if dtype is None else 2e-2
    for one, other in zip(in_reading_order(own), in_reading_order(plain), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    if len(layers) == 1:
        # nobody looks into what is read before all of it is
        for one, other in zip(in_reading_order(own), in_reading_order(plain), strict=True):
            assert one.equal(other)
    for part in own.layers.values():
        assert part.rows is None
        assert part.valid is None


@every_memory
def test_a_short_text_is_not_sorted(layers: tuple[int, ...]) -> None:
    length = 3 * WINDOW - 1
    short = read(layers, TEXT[:length], search="clustered")
    assert short.tokens == length
    assert short.description.clusters == 0
    longer = read(layers, TEXT[: length + 1], search="clustered")
    assert longer.description.clusters == 16


def test_with_one_memory_layer_reading_sorts_as_sorting_does() -> None:
    own = read((1,), search="clustered")
    again = read((1,), search="dense").clustered()
    for one, other in zip(clusters_of(own), clusters_of(again), strict=True):
        assert one.order.equal(other.order)
        assert one.centroids.equal(other.centroids)
    for layer, part in own.layers.items():
        assert part.key.equal(again.layers[layer].key)


@every_memory
def test_answers_are_those_of_dense_search(layers: tuple[int, ...], tmp_path: Path) -> None:
    found = []
    for search in ("clustered", "dense"):
        session = Session(small_model(layers, search=search, retain=0.9999999), byte_tokenizer())
        told = session.read(TEXT, "owl")
        assert bool(told.description.clusters) == (search == "clustered")
        answers = [session.ask("Who has keys?", max_new_tokens=30) for _ in range(2)]
        told.save(tmp_path / search)
        loaded = Session(
            session.model,
            byte_tokenizer(),
            documents=[DocumentMemory.load(tmp_path / search)],
        )
        answers.append(loaded.ask("Who has keys?", max_new_tokens=30))
        assert len({answer.token_ids for answer in answers}) == 1
        found.append(answers[0])
    one, other = found
    assert one.token_ids == other.token_ids
    for mine, theirs in zip(one.heat, other.heat, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)
    named = [{(s.start, s.end, s.text) for s in answer.sources} for answer in found]
    assert named[0] == named[1]


@every_memory
def test_a_reading_that_was_interrupted_goes_on(layers: tuple[int, ...]) -> None:
    expected = read(layers, search="clustered", retain=0.9999999)
    reading = reader.Reading(
        small_model(layers),
        byte_tokenizer(),
        TEXT,
        "owl",
        search={"search": "clustered", "retain": 0.9999999},
    )

    def stop(done: int, is_done: bool) -> None:
        if not is_done and done >= 9 * WINDOW:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reading.run(stop)
    found = reading.run()
    for one, other in zip(in_reading_order(found), in_reading_order(expected), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
