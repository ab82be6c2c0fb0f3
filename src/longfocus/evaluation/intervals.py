"""Shares of right answers and means over documents, and how far chance may have moved them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import exp
from typing import Any

import numpy as np

NORMAL_95 = 1.959964
"""Of a normal distribution, 95% lies within so many standard deviations of the mean."""
TAILS_95 = (0.025, 0.975)
DRAWS = 4000
"""Of a bootstrap."""


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


def mean_over_groups(
    values: Sequence[float], groups: Sequence[Hashable], name: str, seed: int = 0
) -> dict[str, Any]:
    """The mean of values, with its 95% confidence interval, as entries of a row.

    The interval is that of the bootstrap over groups (documents, say, whose windows are alike): groups are drawn again
    with all their values, and a group counts as often as it has values. For two measurements of the same examples give
    the differences: that is the paired interval. With a single group there is none.
    """
    if not values:
        return {name: None, f"{name}_interval": None}
    _, numbers = np.unique([repr(group) for group in groups], return_inverse=True)
    given = np.asarray(values, dtype=np.float64)
    sums, counts = np.bincount(numbers, weights=given), np.bincount(numbers)
    if len(sums) == 1:
        return {name: float(given.mean()), f"{name}_interval": None}
    drawn = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return {name: float(given.mean()), f"{name}_interval": np.quantile(means, TAILS_95).tolist()}


def loss_entries(records: Sequence[Mapping[str, Any]], other: str) -> dict[str, Any]:
    """Loss and perplexity of evaluated windows, with intervals over documents, as entries of a row.

    Where records have a loss under the name `other` too, the change from that one, paired.
    """
    losses, documents = [own["loss"] for own in records], [own["document"] for own in records]
    measured = mean_over_groups(losses, documents, "loss")
    ends = measured["loss_interval"]
    changes = [own["loss"] - own[other] for own in records if other in own]
    return {
        "perplexity": exp(measured["loss"]),
        "perplexity_interval": None if ends is None else list(map(exp, ends)),
        "loss": measured["loss"],
        **(mean_over_groups(changes, documents, "loss_change") if changes else {}),
        "documents": len(set(documents)),
        "windows": len(records),
        "target_tokens": sum(own["target_tokens"] for own in records),
    }
