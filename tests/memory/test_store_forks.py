"""Forks of a store: whatever any of them does, each holds what it was given, and nothing is copied without need."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from longfocus.memory import Store

KV_HEADS, DIM = 2, 4


def pairs(tokens: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(1, KV_HEADS, tokens, DIM) for _ in range(2))
    return key, value


def held(store: Store) -> Tensor:
    """All keys, then all values, of a store of one row."""
    found = [torch.cat([part.key, part.value], -1) for part in store.parts()]
    return torch.cat([torch.empty(1, KV_HEADS, 0, 2 * DIM), *found], 2)


@dataclass(frozen=True)
class Twin:
    """A store, and what it should hold."""

    store: Store
    expected: Tensor
    before: Tensor | None = None
    """What it held before the latest append, which can be undone."""

    def append(self, tokens: int) -> "Twin":
        key, value = pairs(tokens)
        self.store.append(key, value)
        new = torch.cat([self.expected, torch.cat([key, value], -1)], 2)
        return replace(self, expected=new, before=self.expected)

    def undo(self) -> "Twin":
        assert self.before is not None
        self.store.undo_append()
        return replace(self, expected=self.before, before=None)

    def fork(self) -> "Twin":
        return Twin(self.store.fork(), self.expected)


@pytest.mark.parametrize("seed", range(30))
def test_forks_never_see_each_other(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=draw))

    twins = [Twin(Store(), held(Store()))]
    for _ in range(40):
        place, action = number(len(twins)), number(5)
        chosen = twins[place]
        if action == 0:
            twins.append(chosen.fork())
        elif action == 1 and chosen.before is not None:
            twins[place] = chosen.undo()
        else:
            twins[place] = chosen.append(1 + number(9))
        for twin in twins:
            assert held(twin.store).equal(twin.expected)
            assert len(twin.store) == twin.expected.shape[2]


def test_a_fork_shares_all_pairs_and_goes_on_where_there_is_room() -> None:
    store = Store()
    for _ in range(3):
        store.append(*pairs(3))
    (shared,) = store.parts()
    fork = store.fork()
    fork.append(*pairs(1))
    # 3, then 6, then 12 places: there was room behind the shared pairs
    (part,) = fork.parts()
    assert part.key.data_ptr() == shared.key.data_ptr()
    store.append(*pairs(1))
    assert [len(part) for part in store.parts()] == [9, 1]
    assert store.parts()[0].key.data_ptr() == shared.key.data_ptr()


def test_what_is_shared_is_never_copied_to_grow() -> None:
    store = Store()
    store.append(*pairs(10))
    (shared,) = store.parts()
    kept = store.fork()
    for _ in range(200):
        store.append(*pairs(5))
    assert (
        store.parts()[0].key.data_ptr() == shared.key.data_ptr() == kept.parts()[0].key.data_ptr()
    )
    # rooms that cannot grow double
    assert len(store.parts()) <= 8


def test_pairs_that_were_adopted_are_never_written_to() -> None:
    key, value = pairs(6)
    before = key.clone()
    store = Store()
    store.adopt(key, value)
    store.append(*pairs(3))
    assert store.parts()[0].key.data_ptr() == key.data_ptr()
    assert key.equal(before)
    assert [len(part) for part in store.parts()] == [6, 3]
