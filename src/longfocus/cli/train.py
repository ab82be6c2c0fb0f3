"""`longfocus train dictionary|code`: the shipped models, from random weights.

The same command on the same directory continues where it was stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from longfocus.config import Positions

if TYPE_CHECKING:
    from rich.console import Console

    from longfocus.training.loop import Outcome, Progress

    Trainer = Callable[[Callable[[Progress], None]], Outcome]

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class DictionaryArguments:
    """Train the dictionary lookup model. The same command on an existing directory continues."""

    output: Path
    """Directory for the model, its recipe, checkpoints and metrics; new, empty, or of this same training."""
    cpu_minutes: float = 29.0
    """Processor minutes of all threads together; training is shortened to fit."""
    seed: int = 0
    """Of weights and data."""
    memory_layers: tuple[int, ...] = (2,)
    """Which of its 4 layers, counted from 0, look into the memory. The last one may."""
    max_steps: int | None = None
    """Stop after so many steps; the same command with more goes on."""
    positions: Positions = "none"
    """How memory layers see places: none (the shipped model), window_start, true."""
    model: str | None = None
    """Another dictionary model to start from; left out: random weights."""
    curriculum: tuple[int, ...] = (3, 6, 12, 25)
    """Records per window, one stage after the other."""
    curriculum_only: bool = False
    """End behind the curriculum: a model to start from."""
    max_positions: int | None = None
    """Positions, and longest window, of a model of random weights; left out: 256."""
    rope_theta: float = 100.0
    """Base of the rotary encoding of a model of random weights."""
    rope_scaling: str | None = None
    """Scaled positions such as linear:2, dynamic:2 or yarn:2, where windows are longer than the model's positions."""


def run_dictionary(arguments: DictionaryArguments) -> int | None:
    from longfocus.training.dictionary import train_dictionary
    from longfocus.training.dictionary_recipe import DictionaryRecipe

    _check_minutes(arguments.cpu_minutes)
    # the recipe has more entries than the command has options
    given = {
        entry.name: getattr(arguments, entry.name)
        for entry in fields(DictionaryRecipe)
        if hasattr(arguments, entry.name)
    }
    recipe = DictionaryRecipe(**given)
    steps = float("inf") if arguments.max_steps is None else arguments.max_steps
    return _train(
        arguments.output,
        lambda report: train_dictionary(recipe, arguments.output, report=report, max_steps=steps),
    )


@dataclass(frozen=True, kw_only=True)
class CodeArguments:
    """Train the small model of Python source code, and its d = 1 control. The same command continues."""

    output: Path
    """Directory for the model, its recipe, checkpoints and metrics; the control goes to `control` in it."""
    cpu_minutes: float = 29.0
    """Processor minutes of all threads together to train the model. The data take about one more, the control nearly
    as much again."""
    seed: int = 0
    """Of weights and data."""


def run_code(arguments: CodeArguments) -> int | None:
    from rich.console import Console

    from longfocus.training.code import train_code
    from longfocus.training.code_recipe import CodeRecipe

    _check_minutes(arguments.cpu_minutes)
    recipe = CodeRecipe(seed=arguments.seed, cpu_minutes=arguments.cpu_minutes)
    return _train(
        arguments.output,
        lambda report: train_code(
            recipe, arguments.output, report=report, prepare=log_preparation(Console(stderr=True))
        ),
    )


def log_preparation(console: "Console") -> "Callable[[str, int, int], None]":
    """Says when a step of the preparation of data begins and ends, and every 20 seconds how far it is."""
    import time

    from longfocus.cli.progress import LOG_SECONDS

    last, last_time = ("", False), 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal last, last_time
        now, state = time.monotonic(), (what, 0 < total <= done)
        if state != last or now - last_time > LOG_SECONDS:
            last, last_time = state, now
            console.print(what + (f"  {done / total:.0%}" if total else ""), highlight=False)

    return show


SUBCOMMANDS = {
    "dictionary": (DictionaryArguments, run_dictionary),
    "code": (CodeArguments, run_code),
}


def _check_minutes(cpu_minutes: float) -> None:
    from longfocus.errors import LongFocusError

    if not cpu_minutes > 0:
        raise LongFocusError(
            f"--cpu-minutes must be more than 0. Got {cpu_minutes}. Leave it out for the time of the shipped model."
        )


def _train(output: Path, trainer: "Trainer") -> int | None:
    """Run a trainer with live progress and say how it ended."""
    from rich.console import Console

    from longfocus.cli.progress import training_progress
    from longfocus.training.allocator import keep_freed_memory

    keep_freed_memory()
    console = Console(stderr=True)
    with training_progress(console) as report:
        outcome = trainer(report)
    if outcome.ending == "interrupted":
        console.print(
            "Stopped; everything is saved. The same command goes on from here.", highlight=False
        )
        return INTERRUPTED
    if outcome.ending == "max_steps":
        console.print("Stopped after --max-steps; with more the same command goes on.")
        return None
    for stage in outcome.stages:
        console.print(
            f"{stage['name']}: {stage['steps']} steps, accuracy {stage['accuracy']:.1%}, "
            f"{stage['cpu_seconds'] / 60:.1f} CPU-minutes since the start",
            highlight=False,
        )
    console.print(f"The trained model is in {output}", highlight=False, soft_wrap=True)
    return None
