"""`longfocus bench`: what memory costs, measured against every peer in one run, as ratios."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longfocus.cli.outputs import refuse_unwritable
from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from rich.console import Console

    from longfocus.evaluation.speed.bench import Bench

UNEQUAL, INTERRUPTED = 1, 130


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure reading, decoding, searching and memory against plain full attention, the published rules, FAISS and
    others, interleaved in one run. Before a pair is timed, both are checked to compute the same."""

    only: tuple[str, ...] = ()
    """Measurements, or how their names begin: reading_64k measures that pair alone, reading all lengths. --list shows
    them."""
    quick: bool = False
    """Within three minutes: one repetition, and what fits."""
    json: Path | None = None
    """Write every row here, and a flat object "ratios"; kept up to date while the bench runs."""
    resume: bool = False
    """Keep the measurements that the --json file of an interrupted run has finished."""
    plot: Path | None = None
    """Write a picture of reading and decoding by length here, as PNG."""
    threads: int = 1
    """Threads of ours and of every peer."""
    model: str = "dictionary_two"
    """A dictionary model with two memory layers, of `longfocus train dictionary --memory-layers 2 3`."""
    limit_seconds: float = 180.0
    """A peer is not measured at lengths where one repetition takes longer."""
    list: bool = False
    """Show the names of all measurements, and measure nothing."""


def run(arguments: Arguments) -> int | None:
    _check(arguments)
    from rich.console import Console

    from longfocus.evaluation.speed import bench as benches
    from longfocus.evaluation.speed.settings import Settings, quick
    from longfocus.evaluation.speed.suite import measurements, minutes

    settings = Settings(
        trained_two=arguments.model,
        limit_seconds=arguments.limit_seconds,
        threads=arguments.threads,
    )
    if arguments.quick:
        settings = quick(settings)
    every = measurements(settings)
    names = benches.chosen(every, arguments.only)
    console = Console()
    if not console.is_terminal:
        # in a file, a wide table is more use than a folded one
        console = Console(width=150)
    if arguments.list:
        for name in names:
            console.print(f"{name:<24} about {every[name].minutes:.1f} minutes", highlight=False)
        return None
    _silence()
    bench = benches.Bench(settings, benches.new_report(settings))
    if arguments.resume and arguments.json is not None and arguments.json.exists():
        bench.report.take_over(arguments.json)
    expected = minutes(bench, names)
    if settings.budget_seconds is not None:
        expected = min(expected, settings.budget_seconds / 60)
    console.print(
        f"{len(names)} measurements, at most about {expected:.0f} minutes on one core of the machine in docs/speed.md. "
        "Ctrl-C shows what was measured until then.",
        highlight=False,
    )
    return _measure(arguments, console, bench, names)


def _measure(
    arguments: Arguments, console: "Console", bench: "Bench", names: Sequence[str]
) -> int | None:
    from rich.console import Console

    from longfocus.cli.bench_tables import show
    from longfocus.cli.progress import progress_line
    from longfocus.evaluation.speed.bench import measure
    from longfocus.evaluation.speed.equality import Unequal
    from longfocus.evaluation.speed.suite import measurements

    state = {"done": 0.0}
    every = measurements(bench.settings)
    total = sum(every[name].minutes for name in names)
    try:
        with progress_line(Console(stderr=True), total=max(total, 1e-9)) as line:

            def progress(done: float, total: float) -> None:
                state["done"] = done
                line(done, f"{done:.1f} of about {total:.1f} minutes' worth done")

            bench.tell = lambda text: line(state["done"], text)
            measure(bench, every, names, output=arguments.json, progress=progress)
    except Unequal as error:
        print(f"longfocus bench: {error}", file=sys.stderr)
        return UNEQUAL
    show(console, bench.report)
    if arguments.plot is not None and bench.report.rows:
        from longfocus.evaluation.speed.plot import plot

        plot(bench.report.rows, arguments.plot)
    if bench.report.is_interrupted:
        console.print("Interrupted: this is what was measured until then.", highlight=False)
        return INTERRUPTED
    return None


def _check(arguments: Arguments) -> None:
    """Fail before the work, not after it."""
    if arguments.threads < 1:
        raise LongFocusError(f"--threads must be at least 1. Got {arguments.threads}.")
    if not arguments.limit_seconds > 0:
        raise LongFocusError(f"--limit-seconds must be more than 0. Got {arguments.limit_seconds}.")
    if arguments.resume and arguments.json is None:
        raise LongFocusError("--resume goes on with the file of --json. Give it too.")
    refuse_unwritable(arguments.json, arguments.plot)
    if arguments.plot is not None:
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise LongFocusError("--plot needs matplotlib: pip install 'longfocus[bench]'.")


def _silence() -> None:
    """No bars and reminders of the libraries between the figures."""
    from transformers import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


SUBCOMMANDS = {"speed": (Arguments, run)}
"""By its name among the experiments of `longfocus evaluate`."""
