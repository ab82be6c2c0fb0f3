"""A small resumable training loop: stages of steps, with checkpoints that continue bit for bit.

    outcome = train(model, stages, directory, LoopSettings(seed=0, cpu_minutes=20), report=print)

A `Stage` says how one step is made (`step(generator) -> StepResult`, loss with its graph), which optimizers it
uses and when it ends. The loop does the rest: bf16 autocast, backward, gradient clipping, learning rates, the
CPU budget, `metrics.jsonl`, and `training_state.pt`, written every `save_seconds` and on SIGINT or SIGTERM.

A run that is killed and started again with the same arguments gives the same losses as one that was never
stopped, provided that every random choice of a step comes from the generator it is given (or from torch's
global one), that a step keeps no other state, and that no stage was ended or cooled by the CPU budget, which
depends on the machine. Not here: data, model, and anything about where training runs.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from longfocus.core.processor import multiplies
from longfocus.errors import LongFocusError
from longfocus.training.signals import stop_signals
from longfocus.training.stages import LoopSettings, Stage

STATE_FILE = "training_state.pt"
METRICS_FILE = "metrics.jsonl"
Ending = Literal["finished", "interrupted", "max_steps"]


@dataclass(frozen=True)
class Progress:
    """One line of `metrics.jsonl`, and what `report` receives after every step."""

    step: int
    """Steps of all stages, from 1."""
    stage: str
    stage_step: int
    stage_progress: float
    """0..1, in steps or in CPU budget."""
    loss: float
    """Of this step, not smoothed."""
    accuracy: float
    """Smoothed over the stage."""
    tokens_per_second: float
    """Of this step, wall time."""
    cpu_seconds: float
    """Of the whole training so far, all threads."""
    rate: float
    """Factor on the learning rates."""


class Outcome(NamedTuple):
    """How training ended."""

    ending: Ending
    last: Progress | None
    """None if there was nothing to do."""
    stages: list[dict[str, Any]]
    """For every completed stage its name, steps, cpu_seconds and smoothed accuracy at its end."""


@dataclass
class _Counters:
    """Everything of the loop that must survive, besides weights, optimizers and random states."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stage_start_cpu: float = 0.0
    cpu_seconds: float = 0.0
    accuracy: float = 0.0
    completed: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: nn.Module,
    stages: Sequence[Stage],
    directory: Path,
    settings: LoopSettings,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    metrics_file: Path | None = None,
) -> Outcome:
    """Train through the stages, going on from the checkpoint in `directory` if there is one.

    The model is trained in place. Ends when the last stage ends, after `max_steps`, or after the running step when a
    SIGINT or SIGTERM arrives; all leave a checkpoint. Metrics go to the directory if no other file is given.
    """
    run = _Run(model, stages, directory, settings, metrics_file or directory / METRICS_FILE)
    last = None
    with stop_signals() as stopped:
        model.train()
        while run.counters.stage < len(stages) and run.counters.step < settings.max_steps:
            last = run.one_step()
            report(last)
            if stopped() is not None:
                run.save()
                return Outcome("interrupted", last, run.counters.completed)
            run.save_if_due()
    run.save()
    model.eval()
    ending = "finished" if run.counters.stage == len(stages) else "max_steps"
    return Outcome(ending, last, run.counters.completed)


class _Run:
    """A training under way: model, optimizers of the current stage, random state, counters, files."""

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage],
        directory: Path,
        settings: LoopSettings,
        metrics_file: Path,
    ) -> None:
        self.model, self.stages, self.settings = model, stages, settings
        self.is_narrow = settings.autocast and multiplies(torch.bfloat16, torch.device("cpu"))
        self.state_file, self.metrics_file = directory / STATE_FILE, metrics_file
        self.counters = _Counters()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizers: Sequence[torch.optim.Optimizer] = []
        directory.mkdir(parents=True, exist_ok=True)
        if self.state_file.exists():
            self.load()
        else:
            torch.manual_seed(settings.seed)
            self.metrics_file.write_text("")
            self.start_stage(0)
        self.cpu_clock = time.process_time()
        self.last_save = time.monotonic()

    def start_stage(self, stage: int) -> None:
        self.counters.stage, self.counters.stage_step, self.counters.accuracy = stage, 0, 0.0
        self.counters.stage_start_cpu = self.counters.cpu_seconds
        if stage < len(self.stages):
            self.stages[stage].begin()
            if self.stages[stage].optimizers is not None:
                self.make_optimizers()

    def make_optimizers(self) -> None:
        """Those of the current stage, which are of an earlier stage when it keeps them."""
        makers = [
            stage.optimizers for stage in self.stages[: self.counters.stage + 1] if stage.optimizers
        ]
        self.optimizers = makers[-1]()
        for group in self.groups():
            group["peak_lr"] = group["lr"]

    def groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def stage_progress(self) -> float:
        """How much of the current stage is over, 0..1: in steps or in CPU budget, whichever is further."""
        stage, counters = self.stages[self.counters.stage], self.counters
        allowed = stage.budget_share * self.settings.cpu_minutes * 60 - counters.stage_start_cpu
        in_budget = (
            (counters.cpu_seconds - counters.stage_start_cpu) / allowed if allowed > 0 else 1.0
        )
        return min(1.0, max(counters.stage_step / stage.steps, in_budget))

    def one_step(self) -> Progress:
        """Make a step of the current stage, write its metrics, and go to the next stage if this one is over."""
        stage, counters = self.stages[self.counters.stage], self.counters
        rate = stage.schedule(counters.stage_step, self.stage_progress())
        started = time.monotonic()
        for group in self.groups():
            group["lr"] = group["peak_lr"] * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_narrow):
            result = stage.step(self.generator)
        self.update(result.loss)
        counters.step += 1
        counters.stage_step += 1
        self.smooth(result.accuracy)
        now = time.process_time()
        counters.cpu_seconds, self.cpu_clock = counters.cpu_seconds + now - self.cpu_clock, now
        progress = Progress(
            step=counters.step,
            stage=stage.name,
            stage_step=counters.stage_step,
            stage_progress=self.stage_progress(),
            loss=result.loss.item(),
            accuracy=counters.accuracy,
            tokens_per_second=result.tokens / max(time.monotonic() - started, 1e-9),
            cpu_seconds=counters.cpu_seconds,
            rate=rate,
        )
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(asdict(progress)) + "\n")
        if progress.stage_progress >= 1 or counters.accuracy >= stage.until_accuracy:
            self.end_stage(progress)
        return progress

    def update(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise LongFocusError(
                f"Training failed: the loss is {loss.item()} at step {self.counters.step + 1}. The last checkpoint "
                f"in {self.state_file.parent} is sound. Choose another seed, or lower learning rates."
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()

    def smooth(self, accuracy: float) -> None:
        """Exponential mean from 0 (so that a lucky first step does not end a stage)."""
        weight = self.settings.smoothing
        self.counters.accuracy = weight * self.counters.accuracy + (1 - weight) * accuracy

    def end_stage(self, progress: Progress) -> None:
        self.counters.completed.append(
            {
                "name": progress.stage,
                "steps": progress.stage_step,
                "cpu_seconds": progress.cpu_seconds,
                "accuracy": progress.accuracy,
            }
        )
        self.start_stage(self.counters.stage + 1)

    def save_if_due(self) -> None:
        if time.monotonic() - self.last_save >= self.settings.save_seconds:
            self.save()

    def save(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves either the old one or the new one."""
        state = {
            "counters": asdict(self.counters),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),
        }
        temporary = self.state_file.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.state_file)
        self.last_save = time.monotonic()

    def load(self) -> None:
        """Continue from the checkpoint; metrics of steps after it are cut off, for they are made again."""
        state = torch.load(self.state_file, weights_only=True)
        self.counters = _Counters(**state["counters"])
        self.model.load_state_dict(state["model"])
        if self.counters.stage < len(self.stages):
            self.make_optimizers()
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_generator"])
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        self.metrics_file.write_text("".join(lines[: self.counters.step]))
