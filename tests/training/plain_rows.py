"""Documents whose tokens are all different, and the row pipeline told once more on Python lists, as an oracle."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from longfocus.training.rows import Document


def document(number: int, length: int) -> Document:
    """Every token of every document is another one."""
    mask = (np.arange(length) + number) % 3 > 0
    return Document(1000 * number + 1 + np.arange(length), mask.astype(float), "abc"[number % 3])


def documents(lengths: list[int]) -> list[Document]:
    return [document(number, length) for number, length in enumerate(lengths)]


class ReadAgain:
    """An iterable that can only be read from its beginning."""

    def __init__(self, items: list[Document]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Document]:
        return iter(self.items)


def plain_batches(
    items: list[Document], rows: int, packing: int, length: int, pad: bool
) -> Iterator[dict[str, Any]]:
    """The pipeline as golden/README.md tells it, on Python lists; a place is (token, mask, document, source)."""
    width, coming, read, total = packing * length, iter(enumerate(items)), 0, 0
    held: list[list[tuple[int, float, int, str | None]]] = [[] for _ in range(rows)]
    while True:
        for row in held:
            while len(row) < width + 1 and (found := next(coming, None)):
                number, (tokens, mask, source) = found
                read += 1
                row += [
                    (int(token), 0.0 if pad and place == 0 else float(m), number, source)
                    for place, (token, m) in enumerate(zip(tokens, mask, strict=True))
                ]
                row += [(0, 0.0, -1, source)] * (-len(tokens) % width if pad else 0)
        full = [(row + [(0, 0.0, -1, None)] * (width + 1))[: width + 1] for row in held]
        if not any(number >= 0 for row in full for _, _, number, _ in row[1:]):
            return
        sources = Counter(s for row in full for _, _, _, s in row[:width] if s is not None)
        total += sources.total()
        shape = (rows * packing, length)
        yield {
            "input_tokens": np.reshape([[place[0] for place in row[:-1]] for row in full], shape),
            "target_tokens": np.reshape([[place[0] for place in row[1:]] for row in full], shape),
            "loss_masks": np.reshape([[place[1] for place in row[1:]] for row in full], shape),
            "documents": np.reshape([[place[2] for place in row[:-1]] for row in full], shape),
            "metrics": {
                "dataset_example_index": read,
                "dataset_total_tokens": total,
                **{f"batch_tokens_per_source/{name}": n for name, n in sources.items()},
            },
        }
        held = [row[width:] for row in held]


def as_lists(batches: Any) -> list[dict[str, Any]]:
    """Batches that `==` compares whole."""
    return [
        {name: value if name == "metrics" else value.tolist() for name, value in batch.items()}
        for batch in batches
    ]
