"""How many independent windows should be read at a time: speed against one window at a time.

    python benchmarks/reading.py [--threads 1]

The shipped code model (one memory layer) reads the same random tokens in batches of growing size, turn by turn in one
process; medians are shown relative to one window at a time.
"""

import argparse
import statistics
import time

import torch

import longfocus
from longfocus.inference import reader

TOKENS = 2**15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = longfocus.from_pretrained("code")
    ids = torch.randint(
        model.config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0)
    )
    sizes = [model.focus.config.window * 2**i for i in range(6)]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(options.repeats):
        for size in sizes:
            reader.BATCH_TOKENS = size
            start = time.perf_counter()
            longfocus.read_document(model, None, ids)
            seconds[size].append(time.perf_counter() - start)
    medians = {size: statistics.median(found) for size, found in seconds.items()}
    for size, median in medians.items():
        print(
            f"{size:6} tokens at a time: {TOKENS / median:9,.0f} tokens/s, "
            f"{medians[sizes[0]] / median:.2f} times one window"
        )


if __name__ == "__main__":
    main()
