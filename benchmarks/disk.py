"""The disk tier: one decoding step that visits clusters of a memory on a file, cold and warm.

    python benchmarks/disk.py [--tokens 4194304] [--folder /var/tmp] [--repeats 9] [--threads 1]

Made-up keys around 4096 centroids, 2 KV heads of 64, bfloat16, in cluster order on a file of the kind that sessions
with a budget use (2 GiB for 4M tokens). A step ranks the clusters and visits the best 32 of each head. Cold: no page of
the file is in memory, which mincore confirms; the machine beneath a virtual disk may still have them. Plain faults: the
same step, without telling the system beforehand what will be read. Reading: the same bytes, cold, by pread, and nothing
done with them. In turn; medians; all steps are checked to give the same answer.
"""

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longfocus.evaluation.costs import anonymous_bytes
from longfocus.memory.base import Part
from longfocus.memory.clusters import Clusters
from longfocus.memory.sorting import room, side_by_side
from longfocus.memory.tiers import Rooms, SpilledPairs
from longfocus.memory.visits import SortedHead

KV_HEADS, DIM, CLUSTERS, VISITED = 2, 64, 4096, 32
SPREAD = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4 * 2**20)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = anonymous_bytes()
    part = sorted_pairs(options.tokens, Rooms(0, options.folder))
    file = part.file
    assert isinstance(file, SpilledPairs)
    built = anonymous_bytes()
    seconds: dict[str, list[float]] = {
        name: [] for name in ("cold", "warm", "plain faults", "reading")
    }
    for number in range(options.repeats + 1):
        query = torch.randn(
            KV_HEADS, 1, DIM, generator=torch.Generator().manual_seed(number)
        ).bfloat16()
        found = {}
        for name in seconds:
            if name != "warm":
                forget(file)
            if name == "reading":
                taken, _ = timed(lambda query=query: read(part, query))
            else:
                own = replace(part, file=None) if name == "plain faults" else part
                taken, found[name] = timed(lambda own=own, query=query: step(own, query))
            # the first round loads code and centroids
            if number:
                seconds[name].append(taken)
        assert all(answer.equal(found["warm"]) for answer in found.values()), "answers differ"
    touched = VISITED * KV_HEADS * options.tokens // CLUSTERS * 2 * DIM * 2
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(
        f"{options.tokens:,} tokens, {KV_HEADS} heads: {part.nbytes / 2**30:.1f} GiB on a file; a step reads "
        f"{touched / 2**20:.1f} MiB"
    )
    for name, median in medians.items():
        print(
            f"{name:13} {1000 * median:8.2f} ms (least {1000 * min(seconds[name]):.2f}, most "
            f"{1000 * max(seconds[name]):.2f})   {median / medians['cold']:6.2f} times cold"
        )
    for name, amount in (
        ("at the start", before),
        ("with the memory", built),
        ("at the end", anonymous_bytes()),
    ):
        if amount is not None:
            print(f"anonymous memory {name}: {amount / 2**20:,.0f} MiB")


def sorted_pairs(tokens: int, rooms: Rooms) -> Part:
    """Pairs around random centroids, in cluster order, as many in each cluster."""
    each = tokens // CLUSTERS
    shape = (1, KV_HEADS, each * CLUSTERS, DIM)
    key, value, _ = room(shape, torch.bfloat16, torch.device("cpu"), rooms.allocate)
    generator = torch.Generator().manual_seed(0)
    centroids = torch.randn(1, KV_HEADS, CLUSTERS, DIM, generator=generator)
    for head in range(KV_HEADS):
        for cluster in range(CLUSTERS):
            own = slice(cluster * each, (cluster + 1) * each)
            noise, values = torch.randn(2, each, DIM, generator=generator)
            key[0, head, own] = centroids[0, head, cluster] + SPREAD * noise
            value[0, head, own] = values
    starts = (torch.arange(CLUSTERS + 1) * each).expand(1, KV_HEADS, -1).contiguous()
    # nobody asks for the order; a real one has 4 bytes a pair
    order = torch.zeros(1, KV_HEADS, 1, dtype=torch.int32).expand(shape[:3])
    spread = torch.full((1, KV_HEADS, CLUSTERS), SPREAD**2 * DIM)
    clusters = Clusters(centroids, spread, starts, order)
    return Part(key, value, file=SpilledPairs.of(side_by_side(key, value)), clusters=clusters)


def step(part: Part, query: Tensor) -> Tensor:
    """Attention of one query per head over its best clusters."""
    outputs = []
    memories = [SortedHead((part,), (0,), head, DIM**-0.5, None) for head in range(KV_HEADS)]
    for head, memory in enumerate(memories):
        memory.announce(query[head], VISITED)
    for head, memory in enumerate(memories):
        wanted = memory.ranks(query[head]).topk(VISITED).indices
        outputs.append(memory.visit(query[head], wanted).output)
    return torch.cat(outputs)


def read(part: Part, query: Tensor) -> int:
    """Read the bytes that a step looks at; returns how many."""
    assert isinstance(part.file, SpilledPairs)
    assert part.clusters is not None
    descriptor, done = descriptor_of(len(part.file.room)), 0
    each = part.file.pairs.stride(2) * part.file.pairs.element_size()
    for head in range(KV_HEADS):
        memory = SortedHead((part,), (0,), head, DIM**-0.5, None)
        starts = part.clusters.starts[0, head]
        first = head * part.file.pairs.stride(1) * part.file.pairs.element_size()
        for cluster in memory.ranks(query[head]).topk(VISITED).indices[0].sort().values:
            start, stop = int(starts[cluster]) * each, int(starts[cluster + 1]) * each
            done += len(os.pread(descriptor, stop - start, first + start))
    return done


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def forget(file: SpilledPairs) -> None:
    """Have the system drop all pages of the file, and see that it did."""
    room = file.room
    descriptor = descriptor_of(len(room))
    os.fsync(descriptor)
    room.madvise(mmap.MADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    left = resident_pages(file.pairs.data_ptr(), len(room))
    assert left == 0, f"{left} pages of the file are still in memory"


def descriptor_of(size: int) -> int:
    """The descriptor by which mmap holds the nameless file: of this process's open ones that of this size."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.fstat(int(name)).st_size == size:
                return int(name)
        except OSError:
            continue
    raise AssertionError(f"no open file has {size} bytes")


def resident_pages(address: int, size: int) -> int:
    """Pages of a map that are in memory (mincore)."""
    pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(torch.frombuffer(pages, dtype=torch.uint8).bitwise_and(1).sum())


if __name__ == "__main__":
    main()
