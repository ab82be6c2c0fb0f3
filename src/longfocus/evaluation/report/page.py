"""A report as one HTML file that needs nothing else: plots, the paper's figures beside them, rows, and their commands.

Everything that was read from a folder is escaped, and a Content-Security-Policy allows no script, no picture and no
address: only the page's own style, and the drawings that stand in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from longfocus.evaluation.report import benefit, examples, paired, paper
from longfocus.evaluation.report.charts import Chart, Line, LineChart, charts
from longfocus.evaluation.report.draw import colour, dash, svg
from longfocus.evaluation.report.groups import Group, Labelled
from longfocus.evaluation.report.runs import Damaged
from longfocus.evaluation.shown import cell, columns, title
from longfocus.inference.page.html import attribute, source_hash

TITLE = "LongFocus: results"


def page(groups: Sequence[Group], damaged: Sequence[Damaged]) -> str:
    """The whole report; the same folders give the same text."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src {source_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    numbers = count(1)
    sections = "\n".join(_section(group, numbers) for group in groups)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title>
<style>{style}</style>
</head>
<body>
<h1>{TITLE}</h1>
{_overview(groups)}
{_left_out(damaged)}
<main>
{sections}
</main>
</body>
</html>
"""


def _overview(groups: Sequence[Group]) -> str:
    runs = [own for group in groups for own in group.runs]
    unfinished = sum(bool(own.run.status) for own in runs)
    rows = sum(len(own.run.rows) for own in runs)
    told = f"{_counted(len(runs), 'run')}, {_counted(rows, 'row')}."
    if unfinished:
        told += f" <span class=warn>{_counted(unfinished, 'run')} not finished.</span>"
    links = "".join(f'<a href="#{_anchor(g)}">{attribute(g.name)}</a>' for g in groups)
    return f"<p>{told}</p>\n<nav>{links}</nav>"


def _left_out(damaged: Sequence[Damaged]) -> str:
    if not damaged:
        return ""
    items = "".join(
        f"<li>{attribute(str(own.folder))}: {attribute(own.why)}.</li>" for own in damaged
    )
    return f"<p class=warn>Left out:</p><ul>{items}</ul>"


def _section(group: Group, numbers: Iterator[int]) -> str:
    figures = "\n".join(
        _figure(chart, number) for chart, number in zip(charts(group), numbers, strict=False)
    )
    known = "\n".join(map(_paper_table, paper.tables(group.name)))
    heading = f"<h3>The paper</h3><p class=soft>{attribute(paper.title())}</p>" if known else ""
    beside = f"<aside class=paper>{heading}{known}</aside>" if known else ""
    summary = f"<p class=soft>{attribute(group.summary)}</p>" if group.summary else ""
    runs = "\n".join(map(_run, group.runs))
    return f"""<section id="{_anchor(group)}">
<h2>{attribute(group.name)}</h2>
{summary}
<div class=beside>
{figures}
{beside}
</div>
{"".join(map(_benefit, benefit.tables(group)))}
{"".join(map(_paired, paired.tables(group)))}
{_rows(group)}
{"".join(map(_looks, group.runs))}
<ul class=runs>
{runs}
</ul>
</section>"""


def _figure(chart: Chart, number: int) -> str:
    legend = _legend(chart) if isinstance(chart, LineChart) else ""
    return f"<figure><h3>{attribute(chart.title)}</h3>{svg(chart, number)}{legend}</figure>"


def _legend(chart: LineChart) -> str:
    measured = {line.label for line in chart.lines if line.style == "measured"}
    items = [
        f"<li>{_swatch(line)}<span>{attribute(line.label)}</span></li>"
        for line in chart.lines
        # what is drawn beside a line has its label
        if line.style != "beside" or line.label not in measured
    ]
    if any(line.style == "beside" and line.label in measured for line in chart.lines):
        items.append(f"<li class=soft>{chart.beside}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _swatch(line: Line) -> str:
    """A piece of the line."""
    own = colour(line)
    if line.style == "paper":
        mark = f'<path fill="{own}" d="M16 1l2 4 5 .5-3.7 3 1.2 4.5-4.5-2.4L11.5 13l1.2-4.5L9 5.5l5-.5z"/>'
    else:
        mark = (
            f'<path stroke="{own}" stroke-width="2" stroke-dasharray="{dash(line)}" d="M1 7h30"/>'
        )
        mark += "" if line.style != "measured" else f'<circle fill="{own}" cx="16" cy="7" r="3.5"/>'
    return f'<svg width="32" height="14" aria-hidden="true">{mark}</svg>'


def _paired(table: paired.PairedTable) -> str:
    """Differences of losses on the same windows."""
    body = "\n".join(
        f"<tr>{''.join(f'<td>{attribute(own)}</td>' for own in row)}</tr>" for row in table.rows
    )
    return (
        f"<h3>{attribute(table.caption)}</h3>"
        f"<div class=wide><table class=named>{_head(table.columns)}\n{body}</table></div>"
    )


def _benefit(comparison: benefit.BenefitTable) -> str:
    """Which method is how good, and where memory is behind."""
    body = "\n".join(
        f"<tr>{''.join(f'<td>{attribute(own)}</td>' for own in row)}</tr>"
        for row in comparison.rows
    )
    behind = "".join(f"<li>{attribute(own)}</li>" for own in comparison.behind)
    told = f"<p>{comparison.verdict}</p><ul>{behind}</ul>"
    return (
        f"<h3>Does it help?</h3><p class=soft>{attribute(comparison.caption)}</p>"
        f"<div class=wide><table class=named>{_head(comparison.columns)}\n{body}</table></div>{told}"
    )


def _rows(group: Group) -> str:
    rows = [(own.number, row) for own in group.runs for row in own.run.rows]
    if not rows:
        return "<p class=soft>Nothing is measured yet.</p>"
    names = columns(row for _, row in rows)
    body = "\n".join(
        f'<tr><td><a href="#run{number}">{number}</a></td>'
        + "".join(f"<td>{attribute(cell(row, name))}</td>" for name in names)
        + "</tr>"
        for number, row in rows
    )
    return f"<div class=wide><table>{_head(['run', *map(title, names)])}\n{body}</table></div>"


def _head(names: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<th>{attribute(str(name))}</th>' for name in names)}</tr>"


def _run(own: Labelled) -> str:
    hardware = own.run.config.get("hardware") or {}
    machine = ", ".join(str(hardware[key]) for key in ("processor", "device") if key in hardware)
    status = f" <span class=warn>{attribute(own.run.status)}</span>" if own.run.status else ""
    return (
        f"<li id=run{own.number}><b>{own.number}</b> {attribute(own.label)} "
        f"<span class=soft>{attribute(machine)}</span>{status}"
        f"<pre>{attribute(own.run.command)}</pre></li>"
    )


def _paper_table(known: paper.PaperTable) -> str:
    body = "".join(
        f"<tr>{''.join(f'<td>{_shown(own)}</td>' for own in row)}</tr>" for row in known.rows
    )
    caption = f"{attribute(known.what)} ({attribute(known.source)})"
    return f"<p class=soft>{caption}</p><table>{_head(known.columns)}{body}</table>"


def _shown(own: Any) -> str:
    return "-" if own is None else attribute(str(own))


def _looks(own: Labelled) -> str:
    """Examples of what was retrieved."""
    found = examples.looks(own.run)
    if not found:
        return ""
    body = "\n".join(
        f"<tr>{_in_context(look.query)}{_in_context(look.key)}<td>{look.layer}</td>"
        f"<td>{look.knn_score:.1%}</td><td>{look.focus_score:.1%}</td></tr>"
        for look in found
    )
    head = _head(["token that looks", "retrieved key", "layer", "kNN score", "focus score"])
    caption = f"<p class=soft>Largest kNN scores: {attribute(own.label)}</p>"
    return f"{caption}<div class=wide><table>{head}\n{body}</table></div>"


def _in_context(text: tuple[str, str, str]) -> str:
    # on one line, with ends of lines that can be seen
    before, token, behind = (attribute(part.replace("\n", "\u21b5")) for part in text)
    return f"<td class=text>{before}<b>{token}</b>{behind}</td>"


def _anchor(group: Group) -> str:
    # ids have no spaces; the name of an experiment comes from a file
    return attribute("-".join(group.name.split()) or "experiment")


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
