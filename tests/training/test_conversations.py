"""A conversation lies partly in its last window and partly before it, every token of it exactly once."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from plain_rows import ReadAgain, as_lists, document, documents

import longfocus
from longfocus.training.conversations import ConversationRows
from longfocus.training.rows import Document

LENGTH = 8
# from nothing to more than four windows; at the borders of windows too
LENGTHS = [5, 9, 2, 17, 1, 0, 33, 8, 10, 40, 16, 18, 3, 25, 7, 12, 30]


def conversation_rows(
    items: Any, windows: int = 3, batch: int = 2, length: int = LENGTH, seed: int = 0
) -> ConversationRows:
    return ConversationRows(
        items, batch_size=batch * windows, length=length, windows=windows, seed=seed
    )


def by_document(rows: ConversationRows) -> Iterator[dict[str, np.ndarray]]:
    """What every document gave, `[windows, length]` each."""
    for batch in rows:
        arrays = {name: value for name, value in batch.items() if name != "metrics"}
        for entry in range(0, rows.batch_size, rows.windows):
            yield {name: value[entry : entry + rows.windows] for name, value in arrays.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("windows", [1, 2, 3, 5])
def test_every_token_that_fits_comes_once_in_order_with_its_target_and_loss(
    windows: int, seed: int
) -> None:
    items = documents(LENGTHS)
    found = list(by_document(conversation_rows(items, windows, seed=seed)))
    for number, (item, given) in enumerate(zip(items, found, strict=False)):
        inputs = max(len(item.tokens) - 1, 0)
        # what does not fit is cut at the beginning
        kept = min(inputs, windows * LENGTH)
        real = given["documents"] >= 0
        assert set(given["documents"][real]) <= {number}
        assert given["input_tokens"][real].tolist() == item.tokens[inputs - kept : inputs].tolist()
        wanted = slice(inputs - kept + 1, inputs + 1)
        assert given["target_tokens"][real].tolist() == item.tokens[wanted].tolist()
        assert given["loss_masks"][real].tolist() == item.loss_mask[wanted].tolist()
        for name in ("input_tokens", "target_tokens", "loss_masks"):
            assert not given[name][~real].any()
    rest = found[len(items) :]
    assert len(rest) < 2
    assert all((given["documents"] == -1).all() for given in rest)


@pytest.mark.parametrize("windows", [2, 3, 5])
def test_windows_are_filled_from_the_last_one_back_and_padded_on_the_right(windows: int) -> None:
    items = [item for item in documents(LENGTHS) if len(item.tokens) > 1]
    for given, _item in zip(by_document(conversation_rows(items, windows)), items, strict=False):
        real = given["documents"] >= 0
        counts = real.sum(1)
        assert counts[-1] > 0
        # no gap: empty windows come first, and only the one before the last may be half full
        used = np.flatnonzero(counts)
        assert used.tolist() == list(range(used[0], windows))
        assert (counts[used[0] : windows - 2] == LENGTH).all()
        for window, count in zip(real, counts, strict=True):
            assert window[:count].all()


def test_the_last_window_begins_anywhere_that_leaves_room() -> None:
    items = [document(number % 3, 14) for number in range(600)]
    sizes = [
        int((given["documents"][-1] >= 0).sum())
        for given in by_document(conversation_rows(items, 2))
    ]
    # 13 tokens in two windows of 8: at least 5 in the last one
    assert set(sizes) == {5, 6, 7, 8}
    assert all(110 < sizes.count(size) < 190 for size in set(sizes))


def test_the_split_depends_on_seed_and_number_alone() -> None:
    items = documents(LENGTHS)
    one = list(by_document(conversation_rows(items, batch=1)))
    many = list(by_document(conversation_rows(items, batch=5)))
    for first, second in zip(one, many, strict=False):
        assert all(first[name].tolist() == second[name].tolist() for name in first)
    other = list(by_document(conversation_rows(items, batch=1, seed=1)))
    assert any(
        a["documents"].tolist() != b["documents"].tolist() for a, b in zip(one, other, strict=True)
    )


def test_each_kind_of_source_gives_the_same_batches() -> None:
    items = documents(LENGTHS)
    expected = as_lists(conversation_rows(items))
    assert len(expected) == -(-len(items) // 2)
    assert as_lists(conversation_rows(ReadAgain(items))) == expected
    assert as_lists(conversation_rows(iter(items))) == expected


def test_after_the_end_the_documents_come_again() -> None:
    rows = conversation_rows(documents(LENGTHS))
    assert as_lists(rows) == as_lists(rows)


@pytest.mark.parametrize("kind", [list, ReadAgain])
def test_resumed_equals_uninterrupted_at_every_batch(kind: Any) -> None:
    items = documents(LENGTHS)
    whole = as_lists(conversation_rows(items))
    rows = conversation_rows(items)
    states = [rows.state_dict()]
    for _ in rows:
        # between two batches, while the loop is alive
        states.append(rows.state_dict())
    assert states[-1]["read"] == len(items)
    for given, state in enumerate(json.loads(json.dumps(states))):
        resumed = conversation_rows(kind(items))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert as_lists(resumed) == whole[given:]


def test_a_state_can_be_loaded_while_iterating() -> None:
    items = documents(LENGTHS)
    whole = as_lists(conversation_rows(items))
    rows = conversation_rows(items)
    batches = iter(rows)
    next(batches)
    state = rows.state_dict()
    next(batches)
    next(batches)
    rows.load_state_dict(state)
    assert as_lists(batches) == whole[1:]


def test_a_new_loop_goes_on_where_the_last_one_was_left() -> None:
    items = documents(LENGTHS)
    whole = as_lists(conversation_rows(items))
    rows = conversation_rows(items)
    assert as_lists(islice(rows, 3)) == whole[:3]
    assert as_lists(rows) == whole[3:]


class FailsOnce:
    """Documents of which one cannot be read the first time."""

    def __init__(self, items: list[Document], broken: int) -> None:
        self.items, self.broken = items, broken

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Document:
        if number == self.broken:
            self.broken = -1
            raise OSError("the disk is away")
        return self.items[number]


def test_an_error_inside_a_batch_loses_no_conversation() -> None:
    items = documents(LENGTHS)
    whole = as_lists(conversation_rows(items))
    rows = conversation_rows(FailsOnce(items, broken=5))
    with pytest.raises(OSError, match="the disk is away"):
        as_lists(rows)
    # two whole batches, and one conversation of the third that is read again
    state = rows.state_dict()
    assert state["read"] == 4
    assert as_lists(rows) == whole[2:]
    resumed = conversation_rows(items)
    resumed.load_state_dict(state)
    assert as_lists(resumed) == whole[2:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"windows": 2, "batch": 3}, {"length": 9}])
def test_a_state_of_other_settings_is_refused(change: dict[str, int]) -> None:
    items = documents(LENGTHS)
    state = conversation_rows(items).state_dict()
    with pytest.raises(longfocus.LongFocusError, match="other conversation rows"):
        conversation_rows(items, **change).load_state_dict(state)


def test_a_state_of_more_documents_is_refused() -> None:
    rows = conversation_rows(documents(LENGTHS))
    state = {**rows.state_dict(), "read": 99}
    with pytest.raises(longfocus.LongFocusError, match="99 documents, but there are only 17"):
        rows.load_state_dict(state)


@pytest.mark.parametrize("source", [[], ReadAgain([]), iter([])], ids=["list", "again", "once"])
def test_an_empty_source_is_refused(source: Any) -> None:
    with pytest.raises(longfocus.LongFocusError, match="source is empty"):
        next(iter(conversation_rows(source)))


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 7}, {"batch_size": 0}, {"windows": 0}, {"length": 1}],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    sizes = {"batch_size": 6, "length": LENGTH, "windows": 3, **wrong}
    with pytest.raises(longfocus.LongFocusError, match="multiple of windows"):
        ConversationRows(documents(LENGTHS), **sizes)
