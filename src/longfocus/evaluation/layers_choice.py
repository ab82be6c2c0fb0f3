"""Which layers to make memory layers, and which d to begin with, from r_d of the untrained model. Imports no torch.

layers   those with the greatest r_d at the largest measured d; one for a model of up to 12 layers, else three, as
         in the paper's and the published models; not the first two nor the last where there is a choice, and
         not next to each other
d        at the beginning the largest measured one, at most 8, at which the own document still gets more than twice
         as much as another does on average; later 64, where the paper ends
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Rows = Sequence[Mapping[str, Any]]

SMALL_MODEL, FEW, SEVERAL = 12, 1, 3
"""Layers of the paper's small models, which have one memory layer; the published ones have three."""
LARGEST_START, FINAL_D = 8, 64
"""d at the beginning and at the end, in the paper: with more at first, the previous window comes to be ignored."""
CLEARLY = 2.0
"""Times as much as another document that the own one must get."""
FIRST = 2
"""The keys of the layers before hold little more than the token itself."""


@dataclass(frozen=True)
class Ranked:
    """A candidate, and what it was measured to do at the largest d."""

    layer: int
    positive_mass: float
    preference: float


@dataclass(frozen=True)
class Proposal:
    """What to train with."""

    layers: tuple[int, ...]
    start_d: int
    """d of the first steps."""
    measured_d: int
    """The largest that was measured, by which layers are ranked."""
    is_clear: bool
    """Whether the chosen layers prefer their own document clearly at `start_d`."""

    @property
    def final_d(self) -> int:
        return FINAL_D


def preference(positive_mass: float, others: int) -> float:
    """How many times as much attention the own document gets as one of the others on average: 1 by chance."""
    return positive_mass * others / max(1 - positive_mass, 1e-12)


def ranking(rows: Rows) -> list[Ranked]:
    """All candidates, the best first: by r_d at the largest d, the mean over the rows of the longest documents."""
    masses = masses_by_layer(rows)
    largest = max(others for _, others in masses)
    found = [
        Ranked(layer, mass, preference(mass, others))
        for (layer, others), mass in masses.items()
        if others == largest
    ]
    return sorted(found, key=lambda own: (-own.positive_mass, own.layer))


def masses_by_layer(rows: Rows) -> dict[tuple[int, int], float]:
    """r_d by layer and number of other documents: the mean over seeds, of the longest documents."""
    longest = max(row["tokens"] for row in rows)
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["tokens"] == longest:
            for own in row["layers"]:
                found[own["layer"], own["others"]].append(own["positive_mass"])
    return {place: fmean(own) for place, own in sorted(found.items())}


def propose(rows: Rows, number: int | None = None) -> Proposal:
    """The proposal, with `number` memory layers or as many as the rule says."""
    ranked, total = [own.layer for own in ranking(rows)], rows[0]["model_layers"]
    number = min(number or (FEW if total <= SMALL_MODEL else SEVERAL), len(ranked))
    inner = [layer for layer in ranked if FIRST <= layer < total - 1]
    chosen = apart(inner if len(inner) >= number else ranked, number, total // (2 * number))
    masses = masses_by_layer(rows)
    by_d = {
        1 + others: fmean(preference(masses[layer, others], others) for layer in chosen)
        for others in sorted({others for _, others in masses})
    }
    start, is_clear = _start(by_d)
    return Proposal(tuple(sorted(chosen)), start, max(by_d), is_clear)


def apart(ranked: Sequence[int], number: int, spacing: int) -> list[int]:
    """The best that are `spacing` layers or more from each other; nearer where there are too few of them."""
    for least in range(max(spacing, 1), 0, -1):
        chosen: list[int] = []
        for layer in ranked:
            if len(chosen) < number and all(abs(layer - other) >= least for other in chosen):
                chosen.append(layer)
        if len(chosen) == number:
            return chosen
    return list(ranked)


def _start(by_d: Mapping[int, float]) -> tuple[int, bool]:
    """The d to begin with, and whether the own document is clearly preferred there."""
    start = None
    for d, times in sorted(by_d.items()):
        if d > LARGEST_START or times <= CLEARLY:
            break
        start = d
    return (2, False) if start is None else (start, True)
