"""The order in which training sees the documents of a corpus: shuffled, mixed by weight, the same for the same seed.

Every source is a lane. Its documents lie on it one after the other, shuffled anew for each epoch, and a document begins
where the tokens before it end, divided by the source's weight. Training takes the documents by where they begin:

    source a, weight 2   |--a1--|a3|----a2----|a3|----a2----|--a1--|...     two epochs of three documents
    source b, weight 1   |------b2------|----b1----|------b2------|...
    order                 a1 b2  a3  a2  b1 ...

so that at every moment the tokens of the sources are as their weights, up to one document. Where a document of the
order lies can be computed, so a run goes on in the middle without reading what came before.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.training.documents import Document
from longfocus.training.shards import check_ranks, this_shard
from longfocus.training.tokenised import Corpus

EPOCHS_KEPT = 2
STEPS_RATHER_THAN_SEARCH = 1000


class _Epoch(NamedTuple):
    """One pass through a lane."""

    documents: np.ndarray
    """Which document comes at each place."""
    starts: np.ndarray
    """Tokens before each place."""


class Lane:
    """One source, repeated for ever, each epoch in another order."""

    def __init__(self, lengths: np.ndarray, weight: float | None, seed: Sequence[int]) -> None:
        self._lengths, self._seed = lengths, list(seed)
        self.tokens = int(lengths.sum())
        self.weight = float(self.tokens if weight is None else weight)
        self._epochs: dict[int, _Epoch] = {}

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int) -> _Epoch:
        # sorted raw bits, whose sequence numpy promises to keep; that of its shuffles it does not
        bits = np.random.PCG64(np.random.SeedSequence([*self._seed, epoch]))
        documents = np.argsort(bits.random_raw(len(self._lengths)), kind="stable")
        ends = np.cumsum(self._lengths[documents])
        return _Epoch(documents, ends - self._lengths[documents])

    def document(self, number: int) -> int:
        """Which of the source's documents is its number-th."""
        epoch, place = divmod(number, len(self._lengths))
        return int(self._epoch(epoch).documents[place])

    def start(self, number: int) -> float:
        """Where the number-th document begins."""
        epoch, place = divmod(number, len(self._lengths))
        return (epoch * self.tokens + int(self._epoch(epoch).starts[place])) / self.weight

    def end(self, epochs: int) -> float:
        """Where so many epochs end."""
        return epochs * self.tokens / self.weight

    def before(self, place: float) -> int:
        """How many documents begin before a place."""
        epoch, tokens = divmod(place * self.weight, self.tokens)
        # an integer, or the whole array would be made one of floats
        passed = np.searchsorted(self._epoch(int(epoch)).starts, math.ceil(tokens))
        found = int(epoch) * len(self._lengths) + int(passed)
        # the quotient above is rounded, `start` is what counts
        while found and self.start(found - 1) >= place:
            found -= 1
        while self.start(found) < place:
            found += 1
        return found


class Order:
    """Documents of a corpus by running number, for one rank: `order[0]`, `order[1]`, ... or `for document in order`.

    `epochs=None` has no end. With weights, the order ends when every source has come at least `epochs` times. Inside a
    DataLoader worker it is the worker's share, else the rank's: every n-th document of the whole order.
    """

    def __init__(
        self,
        corpus: Corpus,
        seed: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_ranks(rank, world_size)
        check_order(seed, epochs)
        self.corpus, self.seed, self.epochs = corpus, seed, epochs
        self._rank, self._world_size = rank, world_size
        self._lanes = [
            Lane(part.lengths, part.source.weight, (seed, place))
            for place, part in enumerate(corpus.parts)
        ]
        self._total = (
            None if epochs is None else self._count(max(lane.end(epochs) for lane in self._lanes))
        )
        self._go_to([0] * len(self._lanes), 0)

    def __len__(self) -> int:
        """Documents of this share; TypeError, as of everything that has no length, where the order has no end."""
        if self._total is None:
            raise TypeError("this Order has no end (epochs=None)")
        start, _, step = self._numbers()
        return len(range(start, self._total, step))

    def __getitem__(self, index: int) -> Document:
        start, stop, step = self._numbers()
        if index < 0 or (stop is not None and start + index * step >= stop):
            raise IndexError(index)
        return self._document(start + index * step)

    def __iter__(self) -> Iterator[Document]:
        start, stop, step = self._numbers()
        numbers = count(start, step) if stop is None else range(start, stop, step)
        return (self._document(number) for number in numbers)

    def _numbers(self) -> tuple[int, int | None, int]:
        """Start, stop and step of this share's numbers in the whole order."""
        shard = this_shard(self._rank, self._world_size)
        return shard.index, self._total, shard.count

    def _document(self, number: int) -> Document:
        if not 0 <= number - self._number <= STEPS_RATHER_THAN_SEARCH:
            self._search(number)
        while self._number < number:
            self._step()
        lane = self._next_lane()
        place = self._lanes[lane].document(self._given[lane])
        return self.corpus[int(self.corpus.starts[lane]) + place]

    def _go_to(self, given: list[int], number: int) -> None:
        """The place with so many documents of every lane behind it, `number` in all."""
        self._given, self._number = given, number
        self._starts = [lane.start(done) for lane, done in zip(self._lanes, given, strict=True)]

    def _next_lane(self) -> int:
        return self._starts.index(min(self._starts))

    def _step(self) -> None:
        lane = self._next_lane()
        self._given[lane] += 1
        self._starts[lane] = self._lanes[lane].start(self._given[lane])
        self._number += 1

    def _count(self, place: float) -> int:
        return sum(lane.before(place) for lane in self._lanes)

    def _search(self, number: int) -> None:
        """Goes to the last place that is not behind document `number`: less than one step per lane is left."""
        low, high = 0.0, max(lane.end(1) for lane in self._lanes)
        while self._count(high) <= number:
            low, high = high, 2 * high
        while low < (middle := (low + high) / 2) < high:
            if self._count(middle) <= number:
                low = middle
            else:
                high = middle
        given = [lane.before(low) for lane in self._lanes]
        self._go_to(given, sum(given))


def check_order(seed: int, epochs: int | None) -> None:
    """Refuses what numbers no order."""
    if seed < 0:
        raise LongFocusError(f"seed must be 0 or more. Got {seed}. Give any such integer.")
    if epochs is not None and epochs < 1:
        raise LongFocusError(
            f"epochs must be at least 1. Got {epochs}. Give None for an order without end."
        )
