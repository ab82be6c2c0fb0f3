"""How much of the attention on the memory an approximate search keeps: measured on a sample, and acted upon.

For some queries the dense answer is computed too. exp(lse of the pairs attended - lse of all pairs) is the share of the
attention on the memory that was kept. Where the mean of the latest measurements falls under the level asked for, the
search visits more from then on, for the queries at hand too, in the end everything.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from longfocus.core.attention import Partial

OFTEN, SELDOM = 64, 1024
"""Query positions from one audit to the next: at first and after a failure, and after many successes."""
RECENT = 64
"""Measurements whose mean decides."""
_MOST_WIDENINGS = 40


class Retained(NamedTuple):
    """Share of the attention on the memory that was kept, over the audited queries of all heads."""

    mean: float
    p10: float
    least: float
    queries: int
    widened: int
    """How often the search had to visit more."""


@dataclass
class Width:
    """How far a search goes; wider is the same with half the tolerance and twice the least."""

    tolerance: float
    """A query stops when its latest visits added no more than this share to all that it had seen."""
    least: int = 1
    """What every query visits at least: clusters, or keys."""


class Audit:
    """Measures one search of one memory layer, and sets its width."""

    def __init__(self, retain: float, least: int = 1) -> None:
        self.retain = retain
        self.width = Width(1 - retain, least)
        self.kept: list[float] = []
        """Every measurement."""
        self.widened = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._interval, self._until_next = OFTEN, 0

    def report(self) -> Retained | None:
        """What was measured so far; None before anything was."""
        if not self.kept:
            return None
        kept = torch.tensor(self.kept)
        p10, least = float(kept.quantile(0.1)), float(kept.min())
        return Retained(float(kept.mean()), p10, least, len(self.kept), self.widened)

    @torch.no_grad()
    def check(
        self,
        query: Float[Tensor, "batch heads query dim"],
        found: Partial,
        search: Callable[[Tensor], Partial],
        exact: Callable[[Tensor], Partial],
    ) -> Partial:
        """`found`, what `search` says, or what it says when it visits more, because an audit found too little."""
        places = self._due(query.shape[2])
        if not places:
            return found
        asked = query[:, :, places]
        truth = exact(asked).lse
        kept = _shares(found.lse[:, :, places], truth)
        if self._is_enough(kept):
            self._interval = min(2 * self._interval, SELDOM)
            self._note(kept)
            return found
        for _ in range(_MOST_WIDENINGS):
            self._widen()
            kept = _shares(search(asked).lse, truth)
            if self._is_enough(kept):
                break
        self._note(kept)
        return search(query)

    def _due(self, queries: int) -> list[int]:
        """Positions to audit among so many new ones."""
        found = []
        while self._until_next < queries:
            found.append(self._until_next)
            self._until_next += self._interval
        self._until_next -= queries
        return found

    def _is_enough(self, kept: list[float]) -> bool:
        # one audit measures all heads: none of them may go unheard
        recent = [*self._recent, *kept][-max(RECENT, len(kept)) :]
        return not recent or fmean(recent) >= self.retain

    def _note(self, kept: list[float]) -> None:
        self.kept += kept
        self._recent.extend(kept)

    def _widen(self) -> None:
        self.width = Width(self.width.tolerance / 2, 2 * self.width.least)
        self.widened += 1
        self._interval = OFTEN
        self._recent.clear()


def _shares(found: Tensor, truth: Tensor) -> list[float]:
    """exp(found - truth) of the queries that see anything."""
    sees = ~truth.isneginf()
    return (found - truth)[sees].exp().clamp(max=1).tolist()


def retained(searches: Mapping[int, object]) -> dict[int, Retained]:
    """What was measured of some searches, by their memory layer."""
    return reports(searches, "audit")


def reports(searches: Mapping[int, object], measured_by: str) -> dict[int, Any]:
    """What that part of some searches has to report, where there is such a part, and something to report."""
    parts = {layer: getattr(search, measured_by, None) for layer, search in searches.items()}
    found = {layer: part.report() for layer, part in parts.items() if part is not None}
    return {layer: report for layer, report in found.items() if report is not None}
