"""The tables of `longfocus bench`: ratios, and beside them what they are made of."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from longfocus.cli.tables import length

if TYPE_CHECKING:
    from rich.console import Console

    from longfocus.evaluation.speed.rows import Report, Row

NOT_MEASURED = "not measured"
Shown = Callable[["Row", float], str]


def show(console: "Console", report: "Report") -> None:
    """Every row, in one table per kind of measurement, and the notes below."""
    kinds = list(dict.fromkeys(row.what for row in report.rows))
    hardware = ", ".join(f"{name} {value}" for name, value in report.hardware.items())
    console.print(f"\n{hardware}; threads {report.threads}", highlight=False, soft_wrap=True)
    for kind in kinds:
        # what is kept has a column of its own
        rows = [row for row in report.rows if row.what == kind and not _is_mass(row)]
        _table(console, kind, rows)
    for name, why in report.left_out.items():
        console.print(
            f"\n{name} left out, as this run has no time left for it: {why}", highlight=False
        )
    if report.ratios:
        console.print("\nratios by name", style="bold")
        for key, ratio in report.ratios.items():
            console.print(f"  {key:<44} {_number(ratio)}", highlight=False)


def _table(console: "Console", kind: str, rows: list["Row"]) -> None:
    from rich.table import Table

    unit, shown = _units(kind)
    table = Table(title=f"{kind}: {unit}", title_justify="left", title_style="bold")
    for name in ("model", "tokens", "ours", unit, "kept", "beside", unit, "kept", "ratio"):
        is_text = name in ("model", "ours", "beside")
        table.add_column(name, justify="left" if is_text else "right")
    notes: dict[str, str] = {}
    for row in rows:
        mark = notes.setdefault(row.note, f"[{len(notes) + 1}]") if row.note else ""
        table.add_row(
            row.model,
            length(row.tokens) if row.tokens else "",
            row.ours,
            _cell(row, row.ours_seconds, row.ours_bytes, shown),
            _share(row.retained_mass),
            row.peer or "",
            _cell(row, row.peer_seconds, row.peer_bytes, shown) if row.peer else "",
            _share(row.peer_retained_mass),
            ("" if row.ratio is None else _number(row.ratio)) + (f" {mark}" if mark else ""),
        )
    console.print()
    console.print(table)
    for note, mark in notes.items():
        console.print(f"  {mark} {note}", highlight=False, markup=False, soft_wrap=True)


def _is_mass(row: "Row") -> bool:
    return row.key is not None and row.key.endswith("_retained_mass")


def _units(kind: str) -> tuple[str, Shown]:
    """What the figures of a kind of measurement are, and how seconds become them."""
    if kind == "reading":
        return "tokens/s", lambda row, seconds: f"{row.tokens / seconds:,.0f}"
    if kind in ("decoding", "kernel", "window", "estimate of decoding"):
        return "ms", lambda row, seconds: f"{1000 * seconds:,.3g}"
    if kind in ("bytes per token", "estimate of bytes"):
        return "bytes", lambda row, seconds: ""
    if kind == "resident memory":
        return "MiB", lambda row, seconds: ""
    if kind == "growth":
        return "exponent", lambda row, seconds: ""
    return "s", lambda row, seconds: f"{seconds:,.3g}"


def _cell(row: "Row", seconds: float | None, nbytes: int | None, shown: Shown) -> str:
    if nbytes is not None:
        return f"{nbytes / 2**20:,.0f}" if row.what == "resident memory" else f"{nbytes:,}"
    if seconds is not None:
        return shown(row, seconds)
    return NOT_MEASURED if NOT_MEASURED in row.note else ""


def _share(mass: float | None) -> str:
    return "" if mass is None else f"{mass:.4f}"


def _number(ratio: float) -> str:
    return f"{ratio:,.3g}" if ratio < 1000 else f"{ratio:,.0f}"
