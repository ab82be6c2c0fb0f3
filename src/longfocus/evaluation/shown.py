"""How the entries of rows are shown to people: lengths, shares, times, intervals. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

INTERVAL = "_interval"
UNITS = {"_seconds": " s", "_bytes": " MiB"}
NUMBERS = {"perplexity": 2, "loss": 4}
"""Decimals of columns whose names hold one of these; other fractions are shares."""


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All that any row has, in the order in which they come; without tables, by layer say, which are for the file."""
    return list(dict.fromkeys(key for row in rows for key in row if not _is_table(row[key])))


def _is_table(found: Any) -> bool:
    return isinstance(found, list) and any(isinstance(own, dict) for own in found)


def title(column: str) -> str:
    if column.endswith(INTERVAL):
        return "95%"
    for unit, shown in UNITS.items():
        if column.endswith(unit):
            return column.removesuffix(unit).replace("_", " ") + shown
    return column.replace("_", " ")


def cell(row: Mapping[str, Any], column: str) -> str:
    found = row.get(column)
    if found is None:
        return "-"
    if column.endswith(INTERVAL):
        return " to ".join(value(column, end) for end in found)
    return value(column, found)


def value(column: str, found: Any) -> str:
    """One value of a column; what is no number is shown as it is."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return str(found)
    if column == "tokens" or column.endswith("_tokens"):
        return length(int(found))
    if column.endswith("_bytes"):
        return f"{found / 2**20:,.0f}"
    if column.endswith("_seconds"):
        return f"{found:,.1f}"
    if isinstance(found, float):
        digits = next((digits for name, digits in NUMBERS.items() if name in column), None)
        return f"{found:.1%}" if digits is None else f"{found:.{digits}f}"
    return f"{found:,}" if column != "seed" else str(found)


def length(tokens: int) -> str:
    """4096 as 4K."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"
