"""`longfocus train language`: a base and its variants, one per method of the paper's comparison.

The same command on the same directory goes on where it was stopped.
"""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.training.language_recipe import VARIANTS, LanguageRecipe, Variant, large_recipe

if TYPE_CHECKING:
    from longfocus.training.trainer import TrainingStep


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train small language models of Python source code, to compare methods. The same command continues."""

    output: Path
    """Directory for data, base and variants, a folder each; new, empty, or of this same training."""
    data_folder: Path | None = None
    """Where the data are made or found, so that several seeds share them; left out: `data` in the output."""
    seed: int = 0
    """Of weights and of the order of documents."""
    only: tuple[Variant, ...] = VARIANTS
    """Train these variants only, and the base, which all start from. The others may follow later; gate, no_gradient,
    memorizing_joint, w1 and w2 are trained if they are named here."""
    base_steps: int | None = None
    """Steps of the base; left out: those of runs/language.sh."""
    steps: int | None = None
    """Steps of every variant; left out: those of runs/language.sh."""
    large: bool = False
    """A much larger model and many more tokens, on a GPU."""


def run(arguments: Arguments) -> int | None:
    from rich.console import Console

    from longfocus.cli.progress import progress_line
    from longfocus.cli.train import log_preparation
    from longfocus.cli.train_model import describe, quiet_transformers
    from longfocus.training.allocator import keep_freed_memory
    from longfocus.training.language import BASE, train_language
    from longfocus.training.run import joined

    keep_freed_memory()
    quiet_transformers()
    recipe, console = recipe_of(arguments), Console(stderr=True)
    with joined(recipe.base(Path())), progress_line(console, total=1.0) as show:

        def report(name: str, step: "TrainingStep") -> None:
            text = f"{name}  {describe(step)}  {step.cpu_seconds / 60:.1f} CPU-min"
            show(step.step / step.steps, text)

        ended = train_language(
            recipe,
            arguments.output,
            only=arguments.only,
            data=arguments.data_folder,
            report=report,
            prepare=log_preparation(console),
        )
    if ended.ending == "interrupted":
        console.print(
            "Stopped; everything is saved. The same command goes on from here.", highlight=False
        )
        return 128 + (ended.signal or signal.SIGINT)
    trained = ", ".join([BASE, *arguments.only])
    console.print(f"Trained: {trained}, in {arguments.output}", highlight=False, soft_wrap=True)
    return None


def recipe_of(arguments: Arguments) -> LanguageRecipe:
    """The recipe that the options ask for. Raises LongFocusError for one that this machine cannot train."""
    recipe = large_recipe() if arguments.large else LanguageRecipe()
    if not recipe.cpu:
        _check_gpu()
    given = {"base_steps": arguments.base_steps, "steps": arguments.steps}
    changes: dict[str, Any] = {name: steps for name, steps in given.items() if steps is not None}
    return replace(recipe, seed=arguments.seed, **changes)


def _check_gpu() -> None:
    import torch

    from longfocus.errors import LongFocusError

    if not torch.cuda.is_available():
        raise LongFocusError(
            "--large trains on a GPU, and torch sees none here. Leave it out for the small models, which a CPU trains."
        )


SUBCOMMANDS = {"language": (Arguments, run)}
