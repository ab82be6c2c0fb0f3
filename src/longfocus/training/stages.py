"""What a training loop is made of: steps, the stages that they belong to, and what all stages share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class StepResult(NamedTuple):
    """What one step computed."""

    loss: Tensor
    """Scalar with its graph; the loop calls backward."""
    accuracy: float
    """Share of right answers in this step, 0..1; the loop smooths it."""
    tokens: int
    """Tokens that went through the model, for tokens per second."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps of one kind."""

    name: str
    step: Callable[[torch.Generator], StepResult]
    optimizers: Callable[[], Sequence[torch.optim.Optimizer]] | None
    """Made at the stage's start; the `lr` of every group is the peak that `schedule` multiplies. None keeps those
    of the stage before."""
    steps: int
    """The stage ends after so many steps."""
    begin: Callable[[], None] = lambda: None
    """Called once, when the stage starts; not when it goes on after a restart."""
    until_accuracy: float = math.inf
    """It ends earlier when the smoothed accuracy reaches this."""
    budget_share: float = 1.0
    """It ends at the latest when this part of all CPU minutes is used (counted from the start of training)."""
    schedule: Callable[[int, float], float] = lambda step, progress: 1.0
    """Factor on the learning rates from the stage's step (from 0) and its progress 0..1 in steps or budget,
    whichever is further: a cool-down ends at 0 also on a slower machine."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What all stages share."""

    seed: int = 0
    cpu_minutes: float = math.inf
    """Processor time of all threads, over all resumed parts together."""
    clip: float = 1.0
    """Greatest norm of the whole gradient."""
    smoothing: float = 0.9
    """Weight of the past in the smoothed loss and accuracy, per step."""
    max_steps: float = math.inf
    """Stop after so many steps of all stages; a later call with more goes on."""
    save_seconds: float = 60.0
    """Wall seconds between two checkpoints."""
    autocast: bool = True
    """Compute in bf16 where autocast says so, on a CPU that is fast at it."""
