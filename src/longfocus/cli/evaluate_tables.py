"""How `longfocus evaluate` shows its rows: one line for each, and below them mean, least and most over the seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from longfocus.cli.tables import length

if TYPE_CHECKING:
    from rich.console import Console

Rows = Sequence[Mapping[str, Any]]

MEASURES = ("accuracy", "perplexity")
INTERVAL = "_interval"


def show(console: "Console", name: str, rows: Rows) -> None:
    from rich.table import Table

    if not rows:
        console.print("Nothing was measured.")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=name, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(_title(column), justify="right", no_wrap=column.endswith(INTERVAL))
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    console.print(table)
    for line in over_seeds(rows):
        console.print(line, highlight=False)


def over_seeds(rows: Rows) -> list[str]:
    """A line for each length that was measured with several seeds."""
    lines = []
    for measure in MEASURES:
        groups: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row.get(measure) is not None:
                groups[row["tokens"]].append(row[measure])
        lines += [
            f"{length(tokens)}: {measure} {_value(measure, fmean(found))} (mean of {len(found)}), least "
            f"{_value(measure, min(found))}, most {_value(measure, max(found))}"
            for tokens, found in groups.items()
            if len(found) > 1
        ]
    return lines


def _title(column: str) -> str:
    if column.endswith(INTERVAL):
        return "95%"
    for unit, shown in (("_seconds", " s"), ("_bytes", " MiB")):
        if column.endswith(unit):
            return column.removesuffix(unit).replace("_", " ") + shown
    return column.replace("_", " ")


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if column.endswith(INTERVAL):
        return " to ".join(_value(column, end) for end in value)
    return _value(column, value)


def _value(column: str, value: Any) -> str:
    if column == "tokens":
        return length(value)
    if column.endswith("_bytes"):
        return f"{value / 2**20:,.0f}"
    if column.endswith("_seconds"):
        return f"{value:,.1f}"
    if isinstance(value, float):
        return f"{value:.2f}" if "perplexity" in column else f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) and column != "seed" else str(value)
