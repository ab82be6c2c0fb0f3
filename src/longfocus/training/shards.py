"""Which share of the documents a process reads: every n-th, n over all ranks and their DataLoader workers."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from torch.utils import data

from longfocus.errors import LongFocusError

Item = TypeVar("Item")


class Shard(NamedTuple):
    """Numbers index, index + count, index + 2 * count, ..."""

    index: int
    count: int

    def of(self, items: Iterable[Item]) -> Iterator[Item]:
        return islice(items, self.index, None, self.count)


def this_shard(rank: int, world_size: int) -> Shard:
    """The share of the running process: asked when documents are read, since a worker learns late that it is one."""
    worker = data.get_worker_info()
    if worker is None:
        return Shard(rank, world_size)
    return Shard(rank * worker.num_workers + worker.id, world_size * worker.num_workers)


def check_ranks(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise LongFocusError(
            f"rank must lie in 0..world_size-1. Got rank={rank}, world_size={world_size}. Give each process its "
            "own rank."
        )
