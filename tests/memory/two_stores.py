"""A store that sorts what has grown long, and one that never does, to which the same happens."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longfocus.memory import Store, dense
from longfocus.memory.sorting import in_order

KV_HEADS, HEADS, DIM = 2, 4, 4


def pairs(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(rows, KV_HEADS, tokens, DIM) for _ in range(2))
    return key, value


def seen(store: Store) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keys, values and valid bits of every row in the order in which they came."""
    parts = [in_order(part) for part in store.parts()]
    found = []
    for row in range(len(parts[0].rows or ())):
        lines = [(part, part.line_of(row)) for part in parts]
        valid = [
            torch.ones(len(part), dtype=torch.bool) if part.valid is None else part.valid[line]
            for part, line in lines
        ]
        key = torch.cat([part.key[line] for part, line in lines], 1)
        value = torch.cat([part.value[line] for part, line in lines], 1)
        found.append((key, value, torch.cat(valid)))
    return found


def assert_equal(one: Store, other: Store) -> None:
    """The same pairs in the same order, and the same answers."""
    assert len(one) == len(other)
    assert one.nbytes() >= 2 * len(one) * KV_HEADS * DIM * 4
    if not len(one):
        return
    for first, second in zip(seen(one), seen(other), strict=True):
        for mine, theirs in zip(first, second, strict=True):
            assert mine.equal(theirs)
    query = torch.randn(len(seen(one)), HEADS, 3, DIM)
    answers = (dense(query, store.parts(), scale=0.5) for store in (one, other))
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Pair:
    """A store that sorts, and one that does not, to which the same happens."""

    own: Store
    plain: Store
    rows: int = 1

    @classmethod
    def new(cls, rows: int = 1) -> "Pair":
        return cls(Store(is_clustered=True), Store(), rows)

    def append(
        self,
        tokens: int,
        valid: Tensor | None = None,
        lines: tuple[int, ...] | None = None,
    ) -> None:
        key, value = pairs(self.rows, tokens)
        if lines is not None:
            first = [lines.index(line) for line in lines]
            key, value = key[first], value[first]
        for store in (self.own, self.plain):
            store.append(key, value, valid, lines)

    def select(self, rows: list[int]) -> "Pair":
        self.own.select(rows)
        self.plain.select(rows)
        return replace(self, rows=len(rows))

    def fork(self) -> "Pair":
        return Pair(self.own.fork(), self.plain.fork(), self.rows)

    def check(self) -> None:
        assert_equal(self.own, self.plain)
