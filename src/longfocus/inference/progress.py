"""A progress bar for reading: tokens, tokens per second, time left. Shown on a terminal, silent elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longfocus.inference import reader


@contextmanager
def reading_bar(
    name: str, total: int | None, *, is_shown: bool | None = None
) -> Iterator[reader.Progress]:
    """A callback for `read_document` that draws a bar; `total` tokens is an estimate, None unknown."""
    console = Console(file=sys.stderr, force_terminal=is_shown or None)
    shown = console.is_terminal if is_shown is None else is_shown
    columns = (
        TextColumn("reading {task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} tokens, {task.fields[rate]} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(name, total=total, rate="-")

        def report(done: int, is_all: bool) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task,
                completed=done,
                total=done if is_all else total,
                rate=f"{speed:,.0f}" if speed else "-",
            )

        yield report
