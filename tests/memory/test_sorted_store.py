"""A store that sorts what has grown long holds, shares and answers what one does that never sorts."""

import pytest
import torch
from two_stores import DIM, HEADS, KV_HEADS, Pair, pairs

from long import mostly_long
from longfocus import LongFocusError
from longfocus.memory import Part, Store, dense
from longfocus.memory import store as module

FROM = 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs are worth sorting here."""
    monkeypatch.setattr(module, "SORTED_FROM", FROM)
    monkeypatch.setattr(module, "TAIL", FROM // 2)


def sizes(store: Store) -> list[tuple[bool, int]]:
    return [(part.clusters is not None, len(part)) for part in store.parts()]


def sorted_pairs(store: Store) -> int:
    return sum(length for is_sorted, length in sizes(store) if is_sorted)


def test_what_has_grown_long_is_sorted_and_what_came_since_is_not() -> None:
    pair = Pair.new()
    pair.append(FROM - 1)
    pair.append(1)
    assert sizes(pair.own) == [(False, FROM)]
    pair.append(3)
    assert sizes(pair.own) == [(True, FROM), (False, 3)]
    pair.check()
    for _ in range(40):
        pair.append(3)
        pair.check()
    assert sorted_pairs(pair.own) > 5 * FROM
    assert len(pair.own.parts()) <= 6
    assert all(part.clusters is None for part in pair.plain.parts())


def test_only_a_clustered_store_sorts() -> None:
    store = Store()
    for _ in range(9):
        store.append(*pairs(1, FROM))
    assert sizes(store) == [(False, 9 * FROM)]
    assert store.empty().is_clustered is False
    assert Store(torch.bfloat16, is_clustered=True).empty().is_clustered is True
    assert Store(torch.bfloat16, is_clustered=True).empty().dtype == torch.bfloat16


@pytest.mark.parametrize("seed", mostly_long(range(12), 0))
def test_whatever_happens_it_holds_what_a_store_holds_that_does_not_sort(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=draw))

    kept = [Pair.new(3)]
    for _ in range(30):
        place, action = number(len(kept)), number(7)
        pair = kept[place]
        if action == 0 and len(kept) < 4:
            kept.append(pair.fork())
        elif action == 1 and len(pair.own):
            kept[place] = pair.select([number(3) for _ in range(3)])
        elif action == 2 and pair.own._undo is not None:
            assert pair.plain._undo is not None
            pair.own.undo_append()
            pair.plain.undo_append()
        elif action == 3:
            tokens = 1 + number(12)
            pair.append(tokens, torch.rand(3, tokens, generator=draw) < 0.7)
        elif action == 4:
            shared = [(0, 0, 0), (0, 1, 1), (0, 0, 1)][number(3)]
            # rows share lines only while they have shared all before
            if not len(pair.own):
                pair.append(1 + number(25), lines=shared)
        else:
            pair.append(1 + number(12))
        for one in kept:
            one.check()


@pytest.mark.parametrize("before", [FROM - 1, FROM, FROM + 1, 5 * FROM])
def test_an_append_that_sorted_can_be_taken_back(before: int) -> None:
    pair = Pair.new(2)
    pair.append(before)
    pair.append(4)
    pair.check()
    for store in (pair.own, pair.plain):
        store.undo_append()
        assert len(store) == before
    pair.check()
    with pytest.raises(AssertionError, match="nothing to undo"):
        pair.own.undo_append()
    pair.append(7)
    pair.append(FROM)
    pair.append(2)
    pair.check()


@pytest.mark.parametrize("before", [FROM - 3, FROM, FROM + 3])
def test_forks_sort_each_for_itself(before: int) -> None:
    pair = Pair.new()
    pair.append(before)
    other = pair.fork()
    assert other.own.is_clustered
    for _ in range(8):
        pair.append(5)
        pair.check()
        other.check()
    assert len(other.own) == before
    for _ in range(8):
        other.append(7)
        other.check()
        pair.check()
    third = other.fork()
    other.append(FROM)
    other.append(FROM)
    third.append(1)
    for one in (pair, other, third):
        one.check()


def test_a_fork_shares_what_is_sorted() -> None:
    pair = Pair.new()
    pair.append(FROM)
    pair.append(1)
    made = pair.own.fork()
    assert made.parts()[0] is pair.own.parts()[0]


def test_rows_share_sorted_lines_and_part() -> None:
    pair = Pair.new(3)
    pair.append(2 * FROM, lines=(0, 0, 0))
    pair.append(1, lines=(0, 0, 0))
    assert pair.own.parts()[0].key.shape[0] == 1
    assert pair.own.parts()[0].rows == (0, 0, 0)
    for turn in range(12):
        pair.append(5)
        pair = pair.select([[2, 0, 0], [1, 1, 0], [0, 1, 2]][turn % 3])
        pair.check()
    assert sum(part.clusters is not None for part in pair.own.parts()) > 1
    pair = pair.select([1])
    pair.append(FROM)
    pair.append(1)
    pair.check()
    pair = pair.select([0, 0, 0, 0])
    pair.append(FROM)
    pair.append(1)
    pair.check()


def test_rows_that_never_share_are_merged_into_one_part() -> None:
    pair = Pair.new(3)
    for _ in range(20):
        pair.append(FROM)
    pair.check()
    assert sum(part.clusters is not None for part in pair.own.parts()) <= 3


def test_padding_lies_behind_and_is_never_seen() -> None:
    pair = Pair.new(3)
    valid = torch.rand(3, 2 * FROM) < 0.5
    valid[1] = False
    pair.append(2 * FROM, valid)
    pair.append(FROM)
    pair.append(FROM, torch.tensor([[False], [True], [True]]).expand(3, FROM))
    pair.append(1)
    pair.check()
    part = pair.own.parts()[0]
    assert part.valid is not None
    assert part.valid.int().diff(dim=1).max() <= 0


def test_selecting_copies_nothing() -> None:
    pair = Pair.new(2)
    pair.append(FROM)
    pair.append(1)
    before = pair.own.parts()[0]
    pair.select([1, 0, 1])
    after = pair.own.parts()[0]
    assert after.key is before.key
    assert after.clusters is before.clusters
    assert after.rows == (1, 0, 1)


def test_what_is_not_sorted_can_be_cut() -> None:
    pair = Pair.new()
    pair.append(FROM)
    pair.append(6)
    for store in (pair.own, pair.plain):
        store.truncate(FROM + 2)
    pair.check()
    assert sizes(pair.own) == [(True, FROM), (False, 2)]
    pair.append(3)
    pair.check()
    pair.own.truncate(FROM)
    assert len(pair.own) == FROM
    with pytest.raises(ValueError, match="sorted"):
        pair.own.truncate(FROM - 1)
    assert len(pair.own) == FROM


def test_pairs_that_carry_a_gradient_are_not_sorted() -> None:
    store = Store(is_clustered=True)
    key, value = (tensor.requires_grad_() for tensor in pairs(1, FROM))
    store.append(key, value)
    with torch.no_grad():
        store.append(*pairs(1, FROM))
        store.append(*pairs(1, 1))
    assert not any(is_sorted for is_sorted, _ in sizes(store))
    (grad,) = torch.autograd.grad(
        dense(torch.randn(1, HEADS, 1, DIM), store.parts(), scale=1.0).output.sum(), key
    )
    assert grad.abs().sum() > 0


def test_what_is_refused_changes_nothing_though_it_sorted() -> None:
    pair = Pair.new()
    pair.append(FROM)
    key, value = pairs(1, 2)
    value[0, 1, 1, 2] = torch.nan
    with pytest.raises(LongFocusError, match="NaN or infinite"):
        pair.own.append(key, value)
    assert sorted_pairs(pair.own) == FROM
    pair.check()
    pair.append(4)
    pair.check()


def test_an_adopted_memory_is_sorted_when_it_grows() -> None:
    key, value = pairs(1, 3 * FROM)
    own, plain = Store(is_clustered=True), Store()
    pair = Pair(own, plain)
    for store in (own, plain):
        store.adopt(key, value)
    pair.append(2)
    assert sizes(own) == [(True, 3 * FROM), (False, 2)]
    pair.check()


def test_bytes_are_those_of_the_pairs() -> None:
    store = Store(torch.bfloat16, is_clustered=True)
    for _ in range(7):
        store.append(*pairs(2, FROM))
    assert store.nbytes() == 2 * 7 * FROM * 2 * KV_HEADS * DIM * 2
    assert {part.key.dtype for part in store.parts()} == {torch.bfloat16}
    assert isinstance(store.parts()[0], Part)
