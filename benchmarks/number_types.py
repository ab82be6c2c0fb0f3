"""What 16-bit numbers cost on this processor: products of matrices, and a 16-bit memory under float32 queries.

    python benchmarks/number_types.py [--threads 1]

Products of 1024 x 1024 by number type; then dense attention of 1 and 8 queries on 64K pairs in bfloat16, as many
components turned into float32 at a time as a cache holds, against sixteen million. All take turns in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from longfocus.core.processor import multiplies
from longfocus.memory import Part, base

SIZE, PAIRS, KV_HEADS, DIM = 1024, 2**16, 3, 64
MANY_ELEMENTS = 2**24

Name = TypeVar("Name", bound=Hashable)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    products(options.repeats)
    conversions(options.repeats)


def products(repeats: int) -> None:
    types = (torch.float32, torch.bfloat16, torch.float16)
    given = {kind: torch.randn(SIZE, SIZE).to(kind) for kind in types}
    medians = in_turn({kind: lambda own=own: own @ own for kind, own in given.items()}, repeats)
    for kind, seconds in medians.items():
        is_fast = multiplies(kind, torch.device("cpu"))
        print(
            f"{str(kind).removeprefix('torch.'):9} {2 * SIZE**3 / seconds / 1e9:8.2f} GFLOP/s, "
            f"{medians[torch.float32] / seconds:.3f} times float32; used for models: {'yes' if is_fast else 'no'}"
        )


def conversions(repeats: int) -> None:
    key, value = (torch.randn(1, KV_HEADS, PAIRS, DIM).bfloat16() for _ in range(2))
    part, few = Part(key, value), base.CONVERTED_ELEMENTS
    for queries in (1, 8):
        query = torch.randn(1, KV_HEADS, queries, DIM)

        def attend(elements: int, query: torch.Tensor = query) -> None:
            base.CONVERTED_ELEMENTS = elements
            part.attend(query, scale=DIM**-0.5)

        sizes = (few, MANY_ELEMENTS)
        medians = in_turn({size: lambda size=size: attend(size) for size in sizes}, repeats)
        print(
            f"{queries} queries on {PAIRS:,} pairs: {medians[few] * 1e3:.1f} ms, "
            f"{medians[MANY_ELEMENTS] / medians[few]:.2f} times as fast as {MANY_ELEMENTS:,} components at a time"
        )
    base.CONVERTED_ELEMENTS = few


def in_turn(work: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """Median seconds of each, the first round left out."""
    seconds: dict[Name, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
