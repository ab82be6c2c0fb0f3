"""`longfocus evaluate NAME --model MODEL`: one experiment, by lengths of memory and seeds.

The options of an experiment are the fields of its settings (evaluation/experiments). With --output everything is kept
in one folder, and the same command goes on where it was stopped.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.cli.model_options import ModelOptions, load_model
from longfocus.cli.outputs import refuse_unwritable
from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Experiment, Settings
from longfocus.evaluation.experiments import EXPERIMENTS, experiment
from longfocus.evaluation.memory_options import MemoryOptions

if TYPE_CHECKING:
    from longfocus.evaluation.results import Results
    from longfocus.evaluation.subject import Subject

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class _Options(MemoryOptions, ModelOptions):
    """What every experiment takes besides its settings; it comes first, so that its `__post_init__` is what runs."""

    json: Path | None = None
    """Write the rows here, with everything needed to repeat them; kept up to date."""
    output: Path | None = None
    """Folder for configuration, every answer, and the rows; the same command on it goes on where it was stopped."""

    def __post_init__(self) -> None:
        """Settings check themselves when they are made of this, where errors are shown as all others are."""


def _subcommand(name: str) -> tuple[type, Callable[[Any], int | None]]:
    """The arguments of an experiment, and what runs it."""
    chosen = experiment(name)
    arguments = make_dataclass(
        f"{name.capitalize()}Arguments",
        [],
        bases=(_Options, chosen.settings),
        namespace={"__doc__": sys.modules[chosen.settings.__module__].__doc__},
        frozen=True,
        kw_only=True,
    )
    return arguments, lambda given: _run(name, chosen, given)


SUBCOMMANDS = {name: _subcommand(name) for name in EXPERIMENTS}


def _run(name: str, chosen: Experiment, arguments: Any) -> int | None:
    settings = _part(chosen.settings, arguments)
    # what cannot be measured or written is refused before a model is loaded
    cells = list(chosen.cells(settings))
    refuse_unwritable(arguments.json)
    from longfocus.evaluation.results import Results
    from longfocus.evaluation.runner import described
    from longfocus.evaluation.subject import Subject

    results = Results(arguments.output, arguments.json)
    memory = _part(MemoryOptions, arguments)
    subject = Subject(
        load_model(arguments, needs_memory=chosen.needs_memory),
        _tokenizer(chosen, arguments.model),
        memory,
        window_prefix=arguments.window_prefix or (),
        folder=_folder(arguments.model),
    )
    given = [name for name, value in memory.to_dict().items() if value is not None]
    if given and not subject.has_memory:
        raise LongFocusError(
            f"{arguments.model} has no memory, so {', '.join(given)} would have no effect. Leave it out, or attach a "
            "memory with --memory-layers and --window."
        )
    about = {"command": shlex.join(["longfocus", *sys.argv[1:]]), "model": arguments.model}
    results.open(described(name, settings, memory, subject, **about), cells)
    return _measure(name, chosen, settings, subject, results)


def _measure(
    name: str, chosen: Experiment, settings: Settings, subject: "Subject", results: "Results"
) -> int | None:
    from rich.console import Console

    from longfocus.cli.evaluate_tables import show
    from longfocus.cli.progress import progress_line
    from longfocus.evaluation.runner import run

    code = None
    try:
        with progress_line(Console(stderr=True), total=1.0) as line:
            run(chosen, settings, subject, results, line)
    except KeyboardInterrupt:
        code = INTERRUPTED
    results.write()
    console = Console()
    if not console.is_terminal:
        # in a file, a wide table is more use than a folded one
        console = Console(width=180)
    show(console, name, results.rows)
    if code is not None:
        console.print("Interrupted: this is what was measured until then.", highlight=False)
    return code


def _part(kind: type[Any], arguments: Any) -> Any:
    """Those of the arguments that are fields of `kind`."""
    return kind(**{entry.name: getattr(arguments, entry.name) for entry in fields(kind)})


def _tokenizer(chosen: Experiment, model: str) -> Any:
    import longfocus

    return longfocus.tokenizer(model) if chosen.has_texts else None


def _folder(model: str) -> str:
    from longfocus.hf.pretrained import resolve

    return resolve(model)
