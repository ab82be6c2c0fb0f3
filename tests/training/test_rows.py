"""Rows that keep their documents: against a plain oracle, and resumed at every batch."""

import json
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rows import ReadAgain, as_lists, document, documents, plain_batches

from longfocus.training.rows import Document, Rows, document_rows, linear_rows

ARRAYS = ("input_tokens", "target_tokens", "loss_masks", "documents")
quickly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def with_target(lengths: list[int]) -> bool:
    return any(length > 1 for length in lengths)


some_lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(with_target)
some_settings = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 3),
        "packing": st.integers(1, 3),
        "length": st.integers(1, 7),
        "pad": st.booleans(),
    }
)


def rows_of(items: Any, rows: int, packing: int, length: int, pad: bool) -> Rows:
    return document_rows(items, batch_size=rows * packing, length=length, packing=packing, pad=pad)


@quickly
@given(some_lengths, some_settings)
def test_rows_equal_the_plain_pipeline(lengths: list[int], sizes: dict[str, Any]) -> None:
    items = documents(lengths)
    assert as_lists(rows_of(items, **sizes)) == as_lists(plain_batches(items, **sizes))


@quickly
@given(some_lengths, some_settings)
def test_every_token_is_an_input_once_in_the_order_of_its_row(
    lengths: list[int], sizes: dict[str, Any]
) -> None:
    batches = list(rows_of(documents(lengths), **sizes))
    width = sizes["packing"] * sizes["length"]
    shape = (len(batches), sizes["rows"], width)
    numbers = np.reshape([batch["documents"] for batch in batches], shape).swapaxes(0, 1)
    tokens = np.reshape([batch["input_tokens"] for batch in batches], shape).swapaxes(0, 1)
    targets = np.reshape([batch["target_tokens"] for batch in batches], shape).swapaxes(0, 1)
    found: dict[int, list[int]] = {}
    for row in range(sizes["rows"]):
        inside = numbers[row].ravel() >= 0
        for number, token in zip(
            numbers[row].ravel()[inside], tokens[row].ravel()[inside], strict=True
        ):
            found.setdefault(int(number), []).append(int(token))
        # the only token of a row that is no input is its very last one, and that was a target
        lost = set(targets[row].ravel().tolist()) - set(tokens[row].ravel().tolist()) - {0}
        assert len(lost) <= 1
        for token in lost:
            found.setdefault((token - 1) // 1000, []).append(token)
    whole = {n: d.tokens.tolist() for n, d in enumerate(documents(lengths)) if len(d.tokens)}
    single = {n for n in whole if n not in found}
    # a row with one token in all has nothing to learn from
    assert all(len(whole.pop(number)) == 1 for number in single)
    assert found == whole


@pytest.mark.long
@quickly
@given(some_lengths, some_settings, st.booleans(), st.sampled_from([list, ReadAgain]))
def test_resumed_equals_uninterrupted_at_every_batch(
    lengths: list[int], sizes: dict[str, Any], is_linear: bool, kind: Any
) -> None:
    def make() -> Rows:
        items = kind(documents(lengths))
        if is_linear:
            return linear_rows(items, batch_size=sizes["rows"], length=sizes["length"])
        return rows_of(items, **sizes)

    rows, states, batches = make(), [], []
    states.append(json.dumps(rows.state_dict()))
    for batch in rows:
        batches.append(batch)
        states.append(json.dumps(rows.state_dict()))
    whole = as_lists(batches)
    for place, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        assert as_lists(resumed) == whole[place:]


@quickly
@given(some_lengths, st.integers(1, 4), st.integers(1, 6))
def test_linear_rows_are_one_long_row(lengths: list[int], batch_size: int, length: int) -> None:
    sizes = {"batch_size": batch_size, "length": length}
    linear = list(linear_rows(documents(lengths), **sizes))
    packed = list(document_rows(documents(lengths), **sizes, packing=batch_size))
    for batch, same in zip(linear, packed, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(batch[name], same[name])
        assert batch["metrics"].items() <= same["metrics"].items()
    joined = np.concatenate([batch["input_tokens"].ravel() for batch in linear])
    whole = np.concatenate([each.tokens for each in documents(lengths)])
    assert joined[: len(whole) - 1].tolist() == whole[:-1].tolist()


def test_arrays_have_the_stated_types_and_share_no_memory() -> None:
    for rows in (
        document_rows(documents([30, 30]), batch_size=2, length=4),
        linear_rows(documents([30, 30]), batch_size=2, length=4),
    ):
        batch = next(iter(rows))
        assert [batch[name].dtype for name in ARRAYS] == [np.int32, np.int32, np.float32, np.int64]
        assert [batch[name].shape for name in ARRAYS] == [(2, 4)] * 4
        assert not np.shares_memory(batch["input_tokens"], batch["target_tokens"])
        assert all(batch[name].flags.writeable for name in ARRAYS)


def test_documents_may_be_plain_lists_of_any_integers() -> None:
    given_as: list[Any] = [
        ([5, 6, 7], [1, 1, 1], "a"),
        (np.array([8, 9], np.uint16), np.array([True, False]), "a"),
        ((1, 2), (0.5, 1.0), "a"),
    ]
    (batch,) = linear_rows(given_as, batch_size=1, length=6)
    assert batch["input_tokens"].tolist() == [[5, 6, 7, 8, 9, 1]]
    assert batch["loss_masks"].tolist() == [[1, 1, 1, 0, 0.5, 1]]


def test_a_loop_goes_on_where_the_last_one_stopped_and_begins_anew_after_the_end() -> None:
    rows = document_rows(documents([30, 50]), batch_size=2, length=8)
    whole = as_lists(rows)
    assert as_lists(islice(rows, 2)) == whole[:2]
    assert as_lists(rows) == whole[2:]
    assert as_lists(rows) == whole


def test_a_generator_is_read_once_and_never_ahead() -> None:
    taken = []

    def endless() -> Iterator[Document]:
        for number in count():
            taken.append(number)
            yield document(number % 1000, 10)

    rows = document_rows(endless(), batch_size=2, length=8)
    next(iter(rows))
    assert taken == [0, 1]
    next(iter(rows))
    assert taken == [0, 1, 2, 3]


def test_documents_by_number_are_restored_without_reading_the_others() -> None:
    class Numbered:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def __len__(self) -> int:
            raise TypeError("no end")

        def __getitem__(self, number: int) -> Document:
            self.asked.append(number)
            return document(number, 10)

    rows = document_rows(Numbered(), batch_size=2, length=8)
    whole = as_lists(islice(rows, 12))
    again = Numbered()
    rows = document_rows(again, batch_size=2, length=8)
    before = as_lists(islice(rows, 7))
    state = rows.state_dict()
    held = [row["document"] for row in state["rows"]]
    again.asked.clear()
    rows.load_state_dict(state)
    assert again.asked == held
    assert before + as_lists(islice(rows, 5)) == whole
    assert min(set(again.asked) - set(held)) == state["documents"]


def test_a_state_is_small_whatever_the_documents() -> None:
    long = Document(np.arange(1_000_000), np.ones(1_000_000), "a")
    many = [document(number, 1) for number in range(1000)]
    for items in ([long] * 4, many):
        rows = document_rows(items, batch_size=4, length=100, packing=2)
        next(iter(rows))
        assert len(json.dumps(rows.state_dict())) < 500


@pytest.mark.parametrize("bad", [0, 1, 3, 5])
def test_an_error_inside_a_batch_loses_nothing(bad: int) -> None:
    class FailsOnce:
        def __init__(self) -> None:
            self.has_failed = False

        def __len__(self) -> int:
            return 6

        def __getitem__(self, number: int) -> Document:
            if number == bad and not self.has_failed:
                self.has_failed = True
                raise OSError("a disk")
            return document(number, 10)

    rows, batches = document_rows(FailsOnce(), batch_size=3, length=8), []
    with pytest.raises(OSError, match="a disk"):
        batches.extend(rows)
    assert len(batches) == bad // 3
    whole = as_lists(document_rows(documents([10] * 6), batch_size=3, length=8))
    assert as_lists(batches) + as_lists(rows) == whole


def test_empty_documents_are_skipped_and_counted() -> None:
    rows = list(document_rows(documents([0, 20, 0, 20]), batch_size=1, length=8))
    assert [batch["metrics"]["dataset_example_index"] for batch in rows] == [2, 2, 4, 4, 4]
    assert {number for batch in rows for number in batch["documents"].ravel()} == {1, 3}
