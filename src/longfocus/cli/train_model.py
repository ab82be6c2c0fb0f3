"""`longfocus train continue | instruct | scratch`: models of the user's own, on texts of the user's own.

The same command on the same directory goes on where it was stopped. Under torchrun it uses all processes:

    torchrun --nproc-per-node 2 -m -- longfocus train continue --model ... --data ... --output ...
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.training.recipe import ContinueRecipe, InstructRecipe, Recipe, ScratchRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from longfocus.training.ranks import Processes
    from longfocus.training.trainer import TrainingStep

SHOWN_PLANS = 3
CANNOT = 2
"""Exit code where something that the user gave cannot be used."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What a command takes besides its recipe; it comes first, so that its `__post_init__` is the one that runs."""

    output: Path
    """Directory for the model, its recipe, tokens, checkpoints and metrics."""
    dry_run: bool = False
    """Say what would be trained, how much memory and time it needs, and stop."""
    show_plan: bool = False
    """Draw who sees whom in a batch, and stop."""

    def __post_init__(self) -> None:
        """The recipe checks itself when it is made of this, where errors are shown as all others are."""


@dataclass(frozen=True, kw_only=True)
class ContinueArguments(_Options, ContinueRecipe):
    """Continued pre-training of any supported model, so that its memory works."""


@dataclass(frozen=True, kw_only=True)
class InstructArguments(_Options, InstructRecipe):
    """Instruction and chat tuning with a conversation partly in memory."""


@dataclass(frozen=True, kw_only=True)
class ScratchArguments(_Options, ScratchRecipe):
    """Train a small stock model from random weights."""


def run_continue(arguments: ContinueArguments) -> int | None:
    return _run(arguments, ContinueRecipe)


def run_instruct(arguments: InstructArguments) -> int | None:
    return _run(arguments, InstructRecipe)


def run_scratch(arguments: ScratchArguments) -> int | None:
    return _run(arguments, ScratchRecipe)


SUBCOMMANDS = {
    "continue": (ContinueArguments, run_continue),
    "instruct": (InstructArguments, run_instruct),
    "scratch": (ScratchArguments, run_scratch),
}


def _run(arguments: Any, kind: type[Recipe]) -> int | None:
    recipe = kind(**{entry.name: getattr(arguments, entry.name) for entry in fields(kind)})
    if arguments.show_plan:
        return _show_plan(recipe)
    from longfocus.training.run import joined

    with joined(recipe) as processes:
        do = _dry_run if arguments.dry_run else _train
        return _said_once(processes, lambda: do(recipe, arguments.output, processes))


def _said_once(processes: "Processes", do: "Callable[[], int | None]") -> int | None:
    """The exit code of `do`; of several processes only the one that cannot go on says why, before any of them ends."""
    from longfocus.errors import LongFocusError
    from longfocus.training.ranks import StoppedElsewhere

    try:
        return do()
    except StoppedElsewhere:
        return CANNOT
    except LongFocusError as error:
        if processes.count == 1:
            raise
        print(f"longfocus: error: {error}", file=sys.stderr, flush=True)
        return CANNOT


def _train(recipe: Recipe, output: Path, processes: "Processes") -> int | None:
    from rich.console import Console

    from longfocus.cli.train import log_preparation
    from longfocus.training.allocator import keep_freed_memory
    from longfocus.training.run import train_recipe

    keep_freed_memory()
    quiet_transformers()
    console = Console(stderr=True, quiet=processes.rank > 0)
    with _progress(console) as report:
        ended = train_recipe(recipe, output, report=report, prepare=log_preparation(console))
    if ended.ending == "interrupted":
        console.print(
            "Stopped; everything is saved. The same command goes on from here.", highlight=False
        )
        # as a shell reports a process that a signal ended
        return 128 + (ended.signal or signal.SIGINT)
    console.print(f"The trained model is in {output}", highlight=False, soft_wrap=True)
    return None


def quiet_transformers() -> None:
    """transformers' own bars and notes would tear the progress line."""
    from transformers import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def _progress(console: "Console") -> "Iterator[Callable[[TrainingStep], None]]":
    from longfocus.cli.progress import progress_line

    with progress_line(console, total=1.0) as show:
        yield lambda step: show(step.step / step.steps, describe(step))


def describe(step: "TrainingStep") -> str:
    """One line about a step."""
    words = [f"step {step.step}/{step.steps}", f"loss {step.loss:.4f}"]
    if step.d is not None:
        words.append(f"d {step.d}")
    if step.positive_mass:
        words.append(
            "r_d " + " ".join(f"{layer}:{mass:.2f}" for layer, mass in step.positive_mass.items())
        )
    minutes, seconds = divmod(round(step.seconds_left), 60)
    words += [f"{step.tokens_per_second:,.0f} tokens/s", f"{minutes}:{seconds:02} left"]
    return "  ".join(words)


def size(number: int) -> str:
    """Bytes as a person reads them."""
    gib = number / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{number / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _show_plan(recipe: Recipe) -> None:
    import torch

    from longfocus.errors import LongFocusError
    from longfocus.training.contexts import draw_picture, parse_contexts
    from longfocus.training.schedule import parse_schedule

    if recipe.method != "crossbatch":
        raise LongFocusError(f"Only crossbatch has a plan. Got method={recipe.method!r}.")
    contexts, schedule = parse_contexts(recipe.contexts), parse_schedule(recipe.d)
    values = sorted({value for phase in schedule.phases for value in phase.values})
    print(f"{recipe.batch_size} rows, {contexts.windows} consecutive windows per document")
    print("# own window   + same document   - another document   . not seen\n")
    for value in values[:SHOWN_PLANS] if contexts.uses_d else [0]:
        step = contexts.draw(recipe.batch_size, value, torch.Generator().manual_seed(recipe.seed))
        print(contexts.name + (f", d = {value}" if contexts.uses_d else ""))
        print(draw_picture(step, contexts.windows) + "\n")


def _dry_run(recipe: Recipe, output: Path, processes: "Processes") -> None:
    from rich.console import Console

    from longfocus.cli.train import log_preparation
    from longfocus.training.estimate import estimate
    from longfocus.training.model import focus_config, model_config
    from longfocus.training.run import check_places, check_recipe, steps_of

    if processes.rank > 0:
        return
    check_places(recipe, output)
    config = model_config(recipe)
    check_recipe(recipe, config)
    steps = steps_of(recipe, output, config, log_preparation(Console(stderr=True)))
    found = estimate(recipe, config, steps, processes.count)
    focus = focus_config(recipe, config)
    share = found.trained / found.parameters
    print(f"model           {found.parameters:,} parameters, {config.model_type}")
    what = f"LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights"
    print(f"trained         {found.trained:,} ({share:.1%}): {what}")
    if focus is not None:
        print(f"memory layers   {focus.memory_layers}, window {focus.window} tokens")
    print(
        f"method          {recipe.method}"
        + (f", contexts {recipe.contexts}, d {recipe.d}" if recipe.method == "crossbatch" else "")
    )
    print(
        f"tokens          {found.tokens_per_step:,} a step, {found.steps * found.tokens_per_step:,} in "
        f"{found.steps:,} steps"
    )
    print(f"memory          about {size(found.memory_bytes)} per process (estimate)")
    print(
        f"time            about {duration(found.seconds)} (estimate, from a matrix product timed now)"
    )
