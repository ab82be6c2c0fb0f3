"""The order of documents: whole, proportional, the same for the same seed, divided without loss, found again."""

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import as_text, as_worker, tokenizer

from longfocus.errors import LongFocusError
from longfocus.training import mixture
from longfocus.training.mixture import Order
from longfocus.training.rows import Document
from longfocus.training.sources import Source
from longfocus.training.stream import Stream
from longfocus.training.tokenised import Corpus

quickly = settings(max_examples=25, deadline=None, derandomize=True, database=None)


class Part:
    """A source whose documents say which they are: source, number, 0, 0, ..."""

    def __init__(self, place: int, lengths: list[int], weight: float | None) -> None:
        self.source = Source(f"source {place}", weight=weight)
        self.lengths = np.array(lengths)
        self.place = place

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Document:
        tokens = np.zeros(self.lengths[number], np.int32)
        tokens[:2] = self.place, number
        return Document(tokens, np.ones(len(tokens)), self.source.label)


def corpus_of(lengths: list[list[int]], weights: list[float] | None = None) -> Corpus:
    given = weights or [None] * len(lengths)
    return Corpus([Part(i, part, given[i]) for i, part in enumerate(lengths)])  # type: ignore[misc]


def name(document: Document) -> tuple[int, int]:
    return int(document.tokens[0]), int(document.tokens[1])


def names(documents: Any) -> list[tuple[int, int]]:
    return [name(document) for document in documents]


def all_names(lengths: list[list[int]]) -> list[tuple[int, int]]:
    return [(place, number) for place, part in enumerate(lengths) for number in range(len(part))]


some_parts = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=9), min_size=1, max_size=3)
seeds = st.integers(0, 3)


@quickly
@given(some_parts, seeds, st.integers(1, 3))
def test_without_weights_every_epoch_has_every_document_once(
    lengths: list[list[int]], seed: int, epochs: int
) -> None:
    order = Order(corpus_of(lengths), seed, epochs)
    found, size = names(order), len(all_names(lengths))
    assert len(order) == len(found) == epochs * size
    for epoch in range(epochs):
        assert sorted(found[epoch * size : (epoch + 1) * size]) == all_names(lengths)


@quickly
@given(some_parts, seeds, st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_tokens_of_the_sources_are_as_their_weights_up_to_a_document(
    lengths: list[list[int]], seed: int, weights: list[float]
) -> None:
    weights = weights[: len(lengths)]
    given_tokens, longest = [0.0] * len(lengths), [max(part) for part in lengths]
    for document in islice(Order(corpus_of(lengths, weights), seed), 60):
        place, _ = name(document)
        begins = given_tokens[place] / weights[place]
        # whoever comes next is the one that is furthest behind
        assert all(begins <= t / w * (1 + 1e-9) for t, w in zip(given_tokens, weights, strict=True))
        given_tokens[place] += len(document.tokens)
    shares = [t / w for t, w in zip(given_tokens, weights, strict=True)]
    slack = max(length / weight for length, weight in zip(longest, weights, strict=True))
    assert max(shares) - min(shares) <= slack * (1 + 1e-9)


@pytest.mark.long
@quickly
@given(some_parts, seeds, st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(1, 2))
def test_weights_repeat_small_sources_and_leave_nothing_out(
    lengths: list[list[int]], seed: int, weights: list[float], epochs: int
) -> None:
    corpus = corpus_of(lengths, weights[: len(lengths)])
    order = Order(corpus, seed, epochs)
    counts = Counter(names(order))
    assert min(counts[each] for each in all_names(lengths)) == epochs
    endless = Order(corpus, seed)
    assert names(islice(endless, len(order))) == names(order)
    for place, part in enumerate(lengths):
        # an epoch of a source ends before the next one begins
        found = [number for source, number in names(order) if source == place]
        for start in range(0, len(found) - len(part) + 1, len(part)):
            assert sorted(found[start : start + len(part)]) == list(range(len(part)))


@quickly
@given(
    some_parts,
    seeds,
    st.one_of(st.none(), st.just([1.0, 0.3, 7.0])),
    st.randoms(use_true_random=False),
)
def test_any_number_gives_what_the_loop_gives(
    lengths: list[list[int]], seed: int, weights: list[float] | None, random: Any
) -> None:
    corpus = corpus_of(lengths, weights and weights[: len(lengths)])
    expected = names(islice(Order(corpus, seed), 50))
    order, numbers = Order(corpus, seed), list(range(50))
    random.shuffle(numbers)
    assert [name(order[number]) for number in numbers] == [expected[number] for number in numbers]


def test_far_numbers_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    lengths = [random.integers(2, 9, size).tolist() for size in (500, 20, 3)]
    corpus = corpus_of(lengths, [1.0, 2.0, 0.5])
    far = names(islice(Order(corpus, 1), 9_000, 9_020))
    monkeypatch.setattr(mixture, "STEPS_RATHER_THAN_SEARCH", 0)
    order = Order(corpus, 1)
    assert [name(order[number]) for number in range(9_000, 9_020)] == far


def test_seeds_and_epochs_are_other_orders() -> None:
    corpus = corpus_of([[5] * 30])
    found = {seed: names(Order(corpus, seed, 2)) for seed in range(3)}
    orders = [part for whole in found.values() for part in (whole[:30], whole[30:])]
    assert len({tuple(order) for order in orders}) == 6
    assert names(Order(corpus, 2, 2)) == found[2]


@quickly
@given(some_parts, st.integers(1, 3), st.integers(0, 3))
def test_ranks_and_workers_divide_the_order_without_loss_or_overlap(
    lengths: list[list[int]], ranks: int, workers: int
) -> None:
    whole = names(Order(corpus_of(lengths), 0, 2))
    shares = [
        as_worker(
            lambda rank=rank: names(Order(corpus_of(lengths), 0, 2, rank, ranks)), worker, workers
        )
        for rank in range(ranks)
        for worker in range(max(workers, 1))
    ]
    assert sorted(each for share in shares for each in share) == sorted(whole)
    assert shares == [whole[start :: len(shares)] for start in range(len(shares))]


def test_a_worker_learns_its_share_when_it_reads() -> None:
    order = Order(corpus_of([[5] * 10]), 0, 1)
    whole = names(order)
    assert as_worker(lambda: (len(order), names(order), name(order[1])), 1, 3) == (
        3,
        whole[1::3],
        whole[4],
    )
    assert names(pickle.loads(pickle.dumps(order))) == whole


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"seed": -1}, "seed must be 0 or more. Got -1"),
        ({"epochs": 0}, "epochs must be at least 1. Got 0"),
        ({"rank": 2, "world_size": 2}, "Got rank=2, world_size=2"),
    ],
)
def test_what_is_no_order_is_refused(changed: dict[str, int], reason: str, tmp_path: Path) -> None:
    for make in (
        lambda: Order(corpus_of([[5]]), **changed),
        lambda: Stream([as_text(tmp_path / "given")], tokenizer(), **changed),
    ):
        with pytest.raises(LongFocusError, match=reason):
            make()


def test_an_order_without_end_has_no_length() -> None:
    order = Order(corpus_of([[5] * 4]))
    with pytest.raises(TypeError, match="no end"):
        len(order)
    with pytest.raises(IndexError):
        Order(corpus_of([[5] * 4]), 0, 1)[4]
    with pytest.raises(IndexError):
        order[-1]
