"""Interleaved repetitions, their medians, and growth.

    repetition 1   ours  peer A  peer B        so that whatever slows the machine for a while slows all of them
    repetition 2   ours  peer A  peer B

A repetition that takes longer than the limit is stopped, and its cell says so; nothing is ever projected.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ENOUGH_SECONDS = 120.0
"""A contestant that has run so long in all is not repeated again."""


class TooLong(Exception):
    """A repetition took longer than the limit."""


class Clock:
    """Measures one repetition; whatever runs asks it now and then whether to go on."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def check(self) -> None:
        if self.limit is not None and self.seconds > self.limit:
            raise TooLong


Run = Callable[[Clock], float | None]
"""One repetition. It returns the seconds that count, or None for all of them."""


class Timing(NamedTuple):
    """The repetitions of one contestant."""

    seconds: tuple[float, ...]
    why_not: str = ""
    """Why there are none."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Contestant:
    """One way to do what is measured."""

    run: Run
    why_not: str = ""
    """Why it is not measured, if it is not."""
    limit: float | None = None
    """Seconds that a repetition may take."""


def race(
    contestants: Mapping[str, Contestant],
    repetitions: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Let all contestants run in turn, `repetitions` times."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    why_not = {name: one.why_not for name, one in contestants.items()}
    for repetition in range(repetitions):
        for name, one in contestants.items():
            found = seconds[name]
            if why_not[name] or sum(found) > ENOUGH_SECONDS:
                continue
            tell(f"{name}, repetition {repetition + 1} of {repetitions}")
            clock = Clock(one.limit)
            try:
                own = one.run(clock)
                found.append(clock.seconds if own is None else own)
                clock.check()
            except TooLong:
                why_not[name] = too_long(one.limit)
                found.clear()
    return {name: Timing(tuple(found), why_not[name]) for name, found in seconds.items()}


def too_long(limit: float | None) -> str:
    return f"one repetition takes more than {limit:g} s"


def least_seconds(before: Sequence[tuple[int, float]], tokens: int) -> float:
    """A time that reading `tokens` tokens cannot be below, from shorter readings; 0 if nothing is known.

    Only used to not start what would be stopped: the cost per token never falls, so that the growth between the last
    two lengths is the least that comes.
    """
    shorter = sorted(own for own in before if own[0] < tokens)[-2:]
    if not shorter:
        return 0.0
    last, seconds = shorter[-1]
    slope = max(1.0, exponent(*shorter)) if len(shorter) > 1 else 1.0
    return seconds * (tokens / last) ** slope


def exponent(short: tuple[int, float], long: tuple[int, float]) -> float:
    """The slope between two (tokens, seconds) on logarithmic axes: 1 is linear, 2 quadratic."""
    return math.log(long[1] / short[1]) / math.log(long[0] / short[0])
