"""`longfocus evaluate NAME --model MODEL`: one experiment, by lengths of memory and seeds.

The options of an experiment are the fields of its settings (evaluation/experiments). With --output everything is kept
in one folder, and the same command goes on where it was stopped.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from longfocus.cli.model_options import ModelOptions, load_model
from longfocus.cli.outputs import refuse_unwritable
from longfocus.errors import LongFocusError, extra
from longfocus.evaluation.experiment import Experiment, Row, Settings
from longfocus.evaluation.experiments import EXPERIMENTS, experiment
from longfocus.evaluation.memory_options import MemoryOptions

if TYPE_CHECKING:
    from rich.console import Console

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
        [*_of_model(chosen), *(_of_layers() if chosen.attaches else [])],
        bases=(_Options, chosen.settings),
        namespace={"__doc__": sys.modules[chosen.settings.__module__].__doc__},
        frozen=True,
        kw_only=True,
    )
    return arguments, lambda given: _run(name, chosen, given)


def _of_model(chosen: Experiment) -> list[tuple[str, Any, Any]]:
    """--model with a default, where a shipped model knows the experiment."""
    return [] if chosen.model is None else [("model", str, field(default=chosen.model))]


def _of_layers() -> list[tuple[str, Any, Any]]:
    """`--data` under a second name, and what is no setting of an experiment that proposes layers."""
    import tyro

    data: Any = Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--text",))]
    told = "Write a picture of the result here, as PNG (needs the extra `plot`)."
    plot: Any = Annotated[Path | None, tyro.conf.arg(help=told)]
    return [("data", data, field(default=())), ("plot", plot, field(default=None))]


SUBCOMMANDS = {name: _subcommand(name) for name in EXPERIMENTS}


def words_of(words: Sequence[str]) -> list[str]:
    """The options of a command line; a model that stands before all of them is --model."""
    is_named = bool(words) and not words[0].startswith("-")
    return ["--model", *words] if is_named else list(words)


def _run(name: str, chosen: Experiment, arguments: Any) -> int | None:
    settings = _part(chosen.settings, arguments)
    # what cannot be measured or written is refused before a model is loaded
    cells = list(chosen.cells(settings))
    refuse_unwritable(arguments.json)
    if chosen.attaches:
        _refuse_other_memory(name, arguments)
    from longfocus.evaluation.results import Results
    from longfocus.evaluation.runner import described
    from longfocus.evaluation.subject import Subject, answer_plainly

    results = Results(arguments.output, arguments.json)
    memory = _part(MemoryOptions, arguments)
    subject = Subject(
        # a window is then one of the experiment's own settings
        load_model(
            replace(arguments, window=None) if chosen.attaches else arguments,
            needs_memory=chosen.needs_memory,
        ),
        _tokenizer(chosen, arguments.model),
        memory,
        window_prefix=arguments.prefix,
        folder=_folder(arguments.model),
    )
    answer_plainly(subject.model)
    given = [name for name, value in memory.to_dict().items() if value is not None]
    if given and not subject.has_memory:
        raise LongFocusError(
            f"{arguments.model} has no memory, so {', '.join(given)} would have no effect. Leave it out, or attach a "
            "memory with --memory-layers and --window."
        )
    about = {"command": shlex.join(["longfocus", *sys.argv[1:]]), "model": arguments.model}
    results.open(described(name, settings, memory, subject, **about), cells)
    # only some experiments have one
    plot = vars(arguments).get("plot")
    return _measure(name, chosen, settings, subject, results, plot)


def _measure(
    name: str,
    chosen: Experiment,
    settings: Settings,
    subject: "Subject",
    results: "Results",
    plot: Path | None,
) -> int | None:
    from rich.console import Console

    from longfocus.cli.progress import progress_line
    from longfocus.evaluation.runner import run

    code, console = None, Console()
    if not console.is_terminal:
        # in a file, a wide table is more use than a folded one
        console = Console(width=180)
    try:
        try:
            with progress_line(Console(stderr=True), total=1.0) as line:
                run(chosen, settings, subject, results, line)
        except KeyboardInterrupt:
            code = INTERRUPTED
        results.write()
    except Exception:
        # what was measured until then may stand nowhere else
        if found := results.rows + results.unsaved:
            _show(console, name, found)
        raise
    _show(console, name, results.rows)
    if chosen.attaches and results.rows:
        from longfocus.cli.evaluate_layers import conclude

        conclude(console, settings, results, plot)
    if code is not None:
        console.print("Interrupted: this is what was measured until then.", highlight=False)
    return code


def _show(console: "Console", name: str, rows: Sequence[Row]) -> None:
    """The table, and below it what its reader should know of all of its rows."""
    from longfocus.cli.evaluate_tables import show

    show(console, name, rows)
    if any("text_repeated" in row for row in rows):
        print(
            "longfocus: warning: a text was shorter than --tokens, and was read several times over: the column `text "
            "repeated` says how often it began again. Give a longer text, or shorter --tokens.",
            file=sys.stderr,
        )


def _refuse_other_memory(name: str, arguments: Any) -> None:
    """Options of a memory would have no effect where an experiment attaches its own; a plot needs its package."""
    memory = _part(MemoryOptions, arguments).to_dict()
    given = [option for option, value in memory.items() if value is not None]
    given += ["memory_layers"] if arguments.memory_layers else []
    if given:
        raise LongFocusError(
            f"{', '.join(given)} would have no effect: `longfocus evaluate {name}` looks at every layer, exactly. "
            "Leave it out; --layers chooses candidates, and --window and --positions say how they would be attached."
        )
    refuse_unwritable(arguments.plot)
    if arguments.plot is not None:
        with extra("plot", "--plot"):
            import_module("matplotlib")


def _part(kind: type[Any], arguments: Any) -> Any:
    """Those of the arguments that are fields of `kind`."""
    return kind(**{entry.name: getattr(arguments, entry.name) for entry in fields(kind)})


def _tokenizer(chosen: Experiment, model: str) -> Any:
    import longfocus

    return longfocus.tokenizer(model) if chosen.has_texts else None


def _folder(model: str) -> str:
    from longfocus.hf.pretrained import resolve

    return resolve(model)
