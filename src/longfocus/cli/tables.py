"""How commands show results: tables that fill while the work goes on, and numbers with their units."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import number_of_tokens
from longfocus.evaluation.shown import length as length

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FEWEST_TOKENS, FIRST_LENGTH = 1024, 4096

Show = Callable[[str, int, int], None]
"""Told what is being read, how many tokens are, and how many are to be."""


class Measured(Protocol):
    """What every result at one length says about its cost."""

    @property
    def reading_tokens_per_second(self) -> float: ...
    @property
    def seconds_per_answer(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...


def parse_lengths(given: Sequence[str]) -> list[int]:
    """Numbers of tokens from texts such as 4K and 1M; one alone stands for all from 4K up to it, times 4."""
    found = []
    for text in given:
        if (tokens := number_of_tokens(text)) < FEWEST_TOKENS:
            raise LongFocusError(
                f"--tokens {text!r} is too short a text. Allowed: at least 1K, such as 4K, 65536 or 1M."
            )
        found.append(tokens)
    if len(found) > 1:
        return sorted(set(found))
    steps = [FIRST_LENGTH * 4**i for i in range(30) if FIRST_LENGTH * 4**i < found[0]]
    return [*steps, found[0]]


def table_of(title: str, columns: str) -> "Table":
    """An empty table: tokens, then the columns, separated by `|`."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("tokens", *columns.split("|")):
        table.add_column(name, justify="right")
    return table


@contextmanager
def live_table(console: "Console", table: "Table") -> Iterator[Show]:
    """Show the table as it grows, with a line below it that says what is going on; elsewhere than on a terminal
    the finished table alone."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    status = Text()

    def show(name: str, done: int, total: int) -> None:
        status.plain = f"{name}: {done:,} of {total:,} tokens in memory"

    with Live(Group(table, status), console=console, refresh_per_second=4) as live:
        try:
            yield show
        finally:
            live.update(table)
    if not console.is_terminal:
        console.print()


def percent(share: float) -> str:
    return f"{share:.1%}"


def costs(result: Measured) -> tuple[str, str, str]:
    """Tokens read per second, seconds per answer, MiB of memory."""
    return (
        f"{result.reading_tokens_per_second:,.0f}",
        f"{result.seconds_per_answer:.2g}",
        f"{result.memory_bytes / 1024**2:,.0f}",
    )
