"""How `longfocus evaluate` shows its rows: one line for each, and below them mean, least and most over the seeds.

Rows of several tasks have a table for each, of what is measured in it; methods are never averaged together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from longfocus.evaluation.shown import INTERVAL, cell, columns, length, title, value

if TYPE_CHECKING:
    from rich.console import Console

Rows = Sequence[Mapping[str, Any]]

MEASURES = ("accuracy", "perplexity")


def show(console: "Console", name: str, rows: Rows) -> None:
    from rich.table import Table

    if not rows:
        console.print("Nothing was measured.")
        return
    for task in dict.fromkeys(row.get("task") for row in rows):
        own = [row for row in rows if row.get("task") == task]
        # what all of them have is in the title
        names = [column for column in columns(own) if task is None or column != "task"]
        told = name if task is None else f"{name}: {task}"
        table = Table(title=told, title_justify="left", title_style="bold")
        for column in names:
            table.add_column(title(column), justify="right", no_wrap=column.endswith(INTERVAL))
        for row in own:
            table.add_row(*(cell(row, column) for column in names))
        console.print(table)
    for line in over_seeds(rows):
        console.print(line, highlight=False)


def over_seeds(rows: Rows) -> list[str]:
    """A line for each length that was measured with several seeds; of the rows of a seed the mean counts."""
    lines = []
    for measure in MEASURES:
        groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.get(measure) is not None:
                groups[_apart(row)][row["seed"]].append(row[measure])
        for told, seeds in groups.items():
            found = [fmean(own) for own in seeds.values()]
            if len(found) > 1:
                lines.append(
                    f"{told}: {measure} {value(measure, fmean(found))} (mean of {len(found)} seeds), least "
                    f"{value(measure, min(found))}, most {value(measure, max(found))}"
                )
    return lines


def _apart(row: Mapping[str, Any]) -> str:
    """The length of a row, and what it was measured by, if there are several ways."""
    names = [str(row[name]) for name in ("task", "method") if name in row]
    return ", ".join([*names, length(row["tokens"])])
