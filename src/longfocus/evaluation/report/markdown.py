"""A report as Markdown: a table of rows for every experiment, and below it the command that made each."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from longfocus.evaluation.report import benefit, paired, paper
from longfocus.evaluation.report.groups import Group
from longfocus.evaluation.report.runs import Damaged
from longfocus.evaluation.shown import cell, columns, title


def markdown(groups: Sequence[Group], damaged: Sequence[Damaged]) -> str:
    """The whole report."""
    parts = ["# LongFocus: results", *map(_section, groups)]
    if damaged:
        lines = [f"- {_code(str(own.folder))}: {_plain(own.why)}." for own in damaged]
        parts.append("\n".join(["## Left out", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _section(group: Group) -> str:
    parts = [f"## {_plain(group.name)}"]
    if group.summary:
        parts.append(f"{_plain(group.summary)}.")
    for comparison in benefit.tables(group):
        parts += _benefit(comparison)
    for table in paired.tables(group):
        parts += [f"{_plain(table.caption)}:", _table(table.columns, table.rows)]
    rows = [(own.number, row) for own in group.runs for row in own.run.rows]
    if rows:
        names = columns(row for _, row in rows)
        cells = [[str(number), *(cell(row, name) for name in names)] for number, row in rows]
        parts.append(_table(["run", *map(title, names)], cells))
    parts.append("\n".join(_run(own.number, own.label, own.run) for own in group.runs))
    for known in paper.tables(group.name):
        parts.append(f"The paper, {_plain(known.what)} ({_plain(known.source)}):")
        parts.append(_table(known.columns, known.rows))
    return "\n\n".join(parts)


def _benefit(comparison: benefit.BenefitTable) -> list[str]:
    behind = [f"- {_plain(own)}." for own in comparison.behind]
    return [
        f"Does it help? {_plain(comparison.caption)}:",
        _table(comparison.columns, comparison.rows),
        "\n".join([comparison.verdict, "", *behind]).rstrip(),
    ]


def _run(number: int, label: str, run: Any) -> str:
    status = f" **{run.status}.**" if run.status else ""
    return f"{number}. {_plain(label)}.{status} {_command(run.command)}"


def _table(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    titles = [_plain(own) for own in head]
    shown = [["-" if own is None else _plain(str(own)) for own in row] for row in rows]
    lines = [titles, ["--:"] * len(titles), *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    # an underscore within a word means nothing
    return re.sub(r"([\\`*|\[\]#~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _command(text: str) -> str:
    """A command of several lines as a block of the list's entry."""
    if "\n" not in text:
        return _code(text)
    fence = "`" * max(3, _most_ticks(text) + 1)
    return "\n   ".join(["", fence, *text.split("\n"), fence])


def _code(text: str) -> str:
    """A span of code, whatever it holds."""
    fence = "`" * (1 + _most_ticks(text))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _most_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
