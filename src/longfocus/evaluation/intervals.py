"""Shares of right answers, and how far chance may have moved them."""

from collections.abc import Iterable
from typing import Any

NORMAL_95 = 1.959964
"""Of a normal distribution, 95% lies within so many standard deviations of the mean."""


def share(scores: Iterable[float], name: str = "accuracy") -> dict[str, Any]:
    """The mean of scores from 0 to 1, one for each example, with its 95% confidence interval, as entries of a row.

    The interval is Wilson's. Scores between 0 and 1 vary less than those that are either, so with them it is too wide
    rather than too narrow.
    """
    given = list(scores)
    if not given:
        return {name: None, f"{name}_interval": None}
    mean = sum(given) / len(given)
    return {name: mean, f"{name}_interval": list(wilson(mean, len(given)))}


def wilson(share: float, examples: int) -> tuple[float, float]:
    """The 95% confidence interval of a share of so many examples."""
    square = NORMAL_95**2 / examples
    centre = share + square / 2
    spread = (square * (share * (1 - share) + square / 4)) ** 0.5
    low, high = ((centre + way * spread) / (1 + square) for way in (-1, 1))
    # rounding must not leave the share itself outside
    return max(0.0, min(low, share)), min(1.0, max(high, share))
