"""Live progress of a training on the terminal.

On a terminal one line is kept up to date; elsewhere (a log file, CI) a plain line appears now and then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from longfocus.training.loop import Progress as TrainingStep

LOG_SECONDS = 20.0


@contextmanager
def training_progress(console: Console | None = None) -> Iterator[Callable[["TrainingStep"], None]]:
    """Inside, the given function shows a training step: stage, loss, accuracy, tokens/s, CPU time."""
    with progress_line(console, total=1.0) as show:
        yield lambda step: show(step.stage_progress, describe_step(step))


def describe_step(step: "TrainingStep") -> str:
    """One line about a training step."""
    return (
        f"{step.stage}  step {step.stage_step}  loss {step.loss:.3f}  accuracy {step.accuracy:.1%}  "
        f"{step.tokens_per_second:,.0f} tokens/s  {step.cpu_seconds / 60:.1f} CPU-min"
    )


@contextmanager
def progress_line(
    console: Console | None, *, total: float
) -> Iterator[Callable[[float, str], None]]:
    """Inside, the given function shows how much of `total` is done, and a line of text about it."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _logger(console, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text)


def _logger(console: Console, total: float) -> Callable[[float, str], None]:
    """A plain line at the start, at the end, and every LOG_SECONDS between."""
    last = -LOG_SECONDS

    def show(done: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_SECONDS or done >= total:
            last = now
            console.print(text, soft_wrap=True, highlight=False, markup=False)

    return show
