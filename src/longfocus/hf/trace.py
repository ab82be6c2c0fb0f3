"""Where a memory layer looked: the memory entries that received most attention, weights exact.

The weight of an entry is its share of the one softmax over window and memory: exp(score - lse of the union).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from longfocus.memory import Part
from longfocus.memory.exact import best_of_all


class Looked(NamedTuple):
    """One memory entry that a query looked at."""

    layer: int
    part: int
    """Which of the layer's parts; documents come first, in the order of the cache."""
    position: int
    """Token of that part."""
    weight: float
    """Share of the layer's attention, averaged over its heads."""


class Trace:
    """Collects, for the last token of every row of every call, the `top` entries per memory layer.

    Candidates are the `4 * top` best keys of every head; the weight of a candidate is exact in all heads.
    """

    def __init__(self, top: int = 8) -> None:
        self.top = top
        self.rows: list[list[list[Looked]]] = []
        """Per call of the model, per batch row: what was looked at, heaviest first within a layer."""
        self._first_layer: int | None = None

    def begin(self, layer: int, rows: int) -> None:
        """A memory layer begins to look, for a batch of `rows`; the first one begins a new call."""
        if self._first_layer in (None, layer):
            self._first_layer = layer
            self.rows.append([[] for _ in range(rows)])

    def look(
        self,
        layer: int,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence[Part],
        total: Float[Tensor, "batch heads query"],
        *,
        scale: float,
        softcap: float | None = None,
        top_k: int | None = None,
    ) -> None:
        """Record where the last query of every row looked.

        `total` is the log of what exp(score) is divided by to give a weight. With `top_k` only so many keys of all
        parts together were attended.
        """
        last, total = query[:, :, -1:], total[:, :, -1:]
        hits = [part.search(last, top_k or 4 * self.top, scale=scale) for part in parts]
        chosen = None if top_k is None else best_of_all(hits, top_k)
        for row in range(len(query)):
            own = slice(row, row + 1)
            found: list[Looked] = []
            for number, part in enumerate(parts):
                positions = hits[number].positions[own]
                places = positions[~hits[number].scores[own].isneginf()].unique()
                key, _ = part.of_row(row).take(places.expand(1, query.shape[1], 1, -1))
                scores = (key.to(total) @ last[own].to(total)[..., None])[..., 0] * scale
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                weights = (scores - total[own, ..., None]).exp()
                if chosen is not None:
                    taken = positions.masked_fill(~chosen[number][own], -1)
                    weights = weights * (places[:, None] == taken[..., None, :]).any(-1)
                weight = weights.mean(1)[0, 0]
                found += [
                    Looked(layer, number, place, share)
                    for place, share in zip(places.tolist(), weight.tolist(), strict=True)
                    if share > 0
                ]
            self.rows[-1][row] += sorted(found, key=lambda looked: -looked.weight)[: self.top]
