"""Charts as SVG that stands in a page; one of the files that know matplotlib (`pip install longfocus[plot]`).

A drawing holds numbers and names of ours alone: what users called their models is written beside it by the page, where
it can be escaped, and as long as it likes.
"""

import re
from collections.abc import Sequence
from io import StringIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from longfocus.evaluation.report.charts import Chart, Line, LineChart, MapChart

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c4d7d", "#222222")
DASHES = ("", "6 2", "2 2", "8 2 2 2")
"""Of SVG, in points; every round through the colours has the next one."""
PAPER = "#6b6b6b"
_SIZE, _MAP_HEIGHT = (6.2, 3.3), 0.42
_MOST_TICKS = 9
_MOST_NUMBERS = 16
"""Columns of a map whose fields have room for numbers."""
_DARK = 0.55
_ID = re.compile(r'(\bid="|href="#|url\(#)')
_STYLE_ATTRIBUTE = re.compile(r'style="([^"]*)"')
_STYLE_ELEMENT = re.compile(r"<style[^>]*>\*\{(.*?)\}</style>", re.DOTALL)
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "svg.hashsalt": "longfocus",
}


def colour(line: Line) -> str:
    is_ours = line.style in ("measured", "beside")
    return COLOURS[line.number % len(COLOURS)] if is_ours else PAPER


def dash(line: Line) -> str:
    return "1 2" if line.style != "measured" else DASHES[line.number // len(COLOURS) % len(DASHES)]


def svg(chart: Chart, number: int) -> str:
    """An svg element; `number` keeps its names apart from those of other charts in the page."""
    with mpl.rc_context(_STYLE):
        drawn = _map(chart) if isinstance(chart, MapChart) else _lines(chart)
        written = StringIO()
        drawn.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = _ID.sub(rf"\g<1>chart{number}-", text)
    return _without_style(text.replace("<svg ", '<svg role="img" ', 1))


def _without_style(text: str) -> str:
    """The same drawing with attributes of SVG in place of CSS, which the page's policy refuses."""
    everywhere = "".join(_STYLE_ELEMENT.findall(text))
    text = _STYLE_ELEMENT.sub("", text).replace("<svg ", f"<svg {_attributes(everywhere)} ", 1)
    return _STYLE_ATTRIBUTE.sub(lambda found: _attributes(found[1]), text)


def _attributes(css: str) -> str:
    pairs = (part.split(":", 1) for part in css.split(";") if part.strip())
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, value in pairs)


def _lines(chart: LineChart) -> Figure:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    places = _places({point.x for line in chart.lines for point in line.points})
    own = [line for line in chart.lines if line.style == "measured"]
    for line in chart.lines:
        aside = _aside(own.index(line), len(own)) if line in own else 1.0
        _draw(axis, line, {x: place * aside for x, place in places.items()})
    axis.set_xscale("log", base=2)
    first, last = min(places.values()), max(places.values())
    spread = 1.22 if last > first else 2.0
    axis.set_xlim(first / spread, last * spread)
    ticks = _ticks(sorted(places))
    axis.set_xticks([places[x] for x in ticks], [chart.x_shown(x) for x in ticks])
    axis.minorticks_off()
    axis.set_xlabel(chart.x_name)
    axis.set_ylabel(chart.y_name)
    if chart.is_share:
        axis.set_ylim(-0.02, 1.03)
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _places(found: set[int]) -> dict[int, float]:
    """Where lengths stand on a logarithmic axis; 0, nothing in memory, a step before the shortest."""
    shortest = min((x for x in found if x > 0), default=1)
    return {x: float(x) if x > 0 else shortest / 2 for x in found}


def _aside(place: int, lines: int) -> float:
    """A little to the left or right, so that intervals do not hide each other."""
    return 2 ** ((place - (lines - 1) / 2) * min(0.1, 0.5 / lines))


def _ticks(lengths: Sequence[int]) -> Sequence[int]:
    """All of them, or as many as have room, the last one among them."""
    step = -(-len(lengths) // _MOST_TICKS)
    return lengths[::-1][::step][::-1]


def _draw(axis: Axes, line: Line, places: dict[int, float]) -> None:
    own, dashes = colour(line), [float(part) for part in dash(line).split()]
    if line.style == "paper":
        at = [(places[point.x], point.y) for point in line.points]
        axis.plot(*zip(*at, strict=True), "*", color=own, markersize=11, zorder=3)
        return
    x, y = zip(*((places[x], y) for x, y in line.means), strict=True)
    is_measured = line.style == "measured"
    (drawn,) = axis.plot(x, y, color=own, linewidth=1.8 if is_measured else 1.2)
    if dashes:
        drawn.set_dashes(dashes)
    if not is_measured:
        return
    for point in line.points:
        axis.plot([places[point.x]], [point.y], "o", color=own, markersize=4.5, alpha=0.85)
        if point.interval is not None:
            axis.plot([places[point.x]] * 2, point.interval, color=own, linewidth=1, alpha=0.5)


def _map(chart: MapChart) -> Figure:
    rows, columns = len(chart.y), len(chart.x)
    height = _MAP_HEIGHT if columns <= _MOST_NUMBERS else _MAP_HEIGHT / 2
    size = (min(1.2 + 0.75 * columns, 12), 0.9 + height * rows)
    figure = Figure(figsize=(max(size[0], 3.2), size[1]), layout="constrained")
    axis = figure.subplots()
    colours = mpl.colormaps["cividis"]
    axis.set_xlim(-0.5, columns - 0.5)
    # the beginning of the text is at the top
    axis.set_ylim(rows - 0.5, -0.5)
    for row, of_row in enumerate(chart.shares):
        for column, share in enumerate(of_row):
            fill = "#eeeeee" if share is None else colours(share / chart.brightest)
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=fill, linewidth=0))
            if share is not None and columns <= _MOST_NUMBERS:
                ink = "white" if share / chart.brightest < _DARK else "black"
                axis.text(column, row, f"{share:.0%}", ha="center", va="center", color=ink)
    shown = range(0, columns, -(-columns // _MOST_NUMBERS))
    axis.set_xticks(shown, [chart.x_shown(chart.x[place]) for place in shown])
    axis.set_yticks(range(rows), [chart.y_shown(own) for own in chart.y])
    axis.tick_params(length=0)
    axis.set_xlabel(chart.x_name)
    axis.set_ylabel(chart.y_name)
    axis.spines[:].set_visible(False)
    return figure
