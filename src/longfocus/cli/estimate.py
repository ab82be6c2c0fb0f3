"""`longfocus estimate MODEL --tokens N`: what a memory of so many tokens takes, before it is read."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from longfocus.cli.model_options import ModelOptions, load_model
from longfocus.evaluation.experiment import number_of_tokens


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelOptions):
    """Bytes of a memory by arithmetic, and seconds from a short calibration on this machine."""

    model: Annotated[str, tyro.conf.Positional]
    """A folder, a hub id, or the name of a shipped model ("code")."""
    tokens: str = "1M"
    """Tokens of memory, such as 64K, 1M or 100000. 1K is 1024."""
    memory_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Number type of the memory; the default is the model's."""


def run(arguments: Arguments) -> int | None:
    tokens = number_of_tokens(arguments.tokens)
    model = load_model(arguments)

    from rich.console import Console
    from rich.table import Table

    from longfocus.evaluation.speed.estimate import estimate

    console = Console()
    found = estimate(model, tokens, arguments.memory_dtype)
    table = Table(show_header=False, title=f"{tokens:,} tokens of memory, dense search")
    table.add_column()
    table.add_column(justify="right")
    table.add_row(f"bytes per token, {found.dtype}", f"{found.bytes_per_token:,}")
    table.add_row("memory", _bytes(found.memory_bytes))
    table.add_row("reading", _seconds(found.reading_seconds))
    table.add_row("  tokens per second", f"{tokens / found.reading_seconds:,.0f}")
    table.add_row("per decoded token", _seconds(found.decode_seconds))
    table.add_row("  with nothing in memory", _seconds(found.empty_decode_seconds))
    console.print(table)
    return None


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:,.1f} ms"
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} minutes"
