"""How many contexts a step has: schedules of d, the crossbatch dimension.

    2                                 always
    2,128                             drawn per step (the paper's fine-tuning)
    1 until 98% then 128              switched at a training accuracy (the paper's dictionary)
    2 until step 5000 then 2,64       switched at a step (the paper's small models)

A switch at an accuracy happens once and must survive a restart, so `Schedule` has a state.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

from longfocus.errors import LongFocusError

SMOOTHING = 0.9
"""Weight of the past in the accuracy that decides a switch, per step."""

NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
SWITCH = re.compile(rf"\s*([0-9,\s]+?)\s+until\s+(?:step\s+([0-9]+)|({NUMBER})\s*(%?))\s*")


@dataclass(frozen=True)
class Phase:
    """Values of d, one drawn per step, and when the next phase begins."""

    values: tuple[int, ...]
    until_step: int | None = None
    until_accuracy: float | None = None
    """Share of right answers, 0..1, smoothed."""


class Schedule:
    """The d of every step."""

    def __init__(self, phases: tuple[Phase, ...]) -> None:
        self.phases = phases
        self._phase = 0
        self._accuracy = 0.0

    @property
    def largest(self) -> int:
        return max(max(phase.values) for phase in self.phases)

    @property
    def needs_accuracy(self) -> bool:
        return any(phase.until_accuracy is not None for phase in self.phases)

    def draw(self, step: int, generator: torch.Generator) -> int:
        """The d of step `step`, counted from 0."""
        phase = self.phases[self._phase]
        while phase.until_step is not None and step >= phase.until_step:
            self._next()
            phase = self.phases[self._phase]
        chosen = int(torch.randint(len(phase.values), (), generator=generator))
        return phase.values[chosen]

    def tell(self, accuracy: float) -> None:
        """The training accuracy of the step that was made, 0..1."""
        # from 0, so that a lucky first step does not end a phase
        self._accuracy = SMOOTHING * self._accuracy + (1 - SMOOTHING) * accuracy
        until = self.phases[self._phase].until_accuracy
        if until is not None and self._accuracy >= until:
            self._next()

    def _next(self) -> None:
        self._phase, self._accuracy = self._phase + 1, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"phase": self._phase, "accuracy": self._accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._phase, self._accuracy = state["phase"], state["accuracy"]


def parse_schedule(text: str) -> Schedule:
    """Read a schedule of d. Raises LongFocusError if it is not one."""
    *switched, last = text.split("then")
    phases = []
    for part in switched:
        match = SWITCH.fullmatch(part)
        if match is None:
            raise _unknown(text)
        accuracy = None
        if match[3] is not None:
            accuracy = float(match[3]) / (100 if match[4] else 1)
            # a smoothed accuracy never gets to 1
            if not 0 < accuracy < 1:
                raise _unknown(text)
        phases.append(
            Phase(_values(text, match[1]), None if match[2] is None else int(match[2]), accuracy)
        )
    steps = [phase.until_step for phase in phases if phase.until_step is not None]
    if steps != sorted(set(steps)):
        raise _unknown(text)
    return Schedule((*phases, Phase(_values(text, last))))


def _values(text: str, part: str) -> tuple[int, ...]:
    words = [word.strip() for word in part.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise _unknown(text)
    return tuple(int(word) for word in words)


def _unknown(text: str) -> LongFocusError:
    return LongFocusError(
        f"{text!r} is not a schedule of d. Allowed: a number such as '2', several to draw from such as '2,128', and "
        "switches such as '1 until 98% then 128' (below 100%) or '2 until step 5000 then 64' (at growing steps)."
    )
