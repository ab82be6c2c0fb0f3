"""Which plots a report has, as numbers: lines with intervals, and maps of two numbers. Draws nothing.

What is plotted is decided by what rows have, not by the name of their experiment:

    accuracy        against tokens; with `depth`: a map of tokens and depth for each run
    perplexity      against tokens, and in a plot of its own against tokens of other documents
    positive_mass   against the number of documents in memory, of every layer where rows tell; with `heads`: a map of
                    layer and head for each run
    knn_score, focus_score, same_token     against tokens
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from longfocus.evaluation.intervals import wilson
from longfocus.evaluation.layers_choice import Proposal, masses_by_layer, propose
from longfocus.evaluation.report import paper
from longfocus.evaluation.report.groups import Group, Labelled
from longfocus.evaluation.report.runs import Row
from longfocus.evaluation.shown import INTERVAL, length

FARTHEST = 16
"""Times the longest length of ours: where a point of the paper is still plotted."""
MOST_LAYERS = 8
"""That have a line each."""


class Point(NamedTuple):
    """Of one row."""

    x: int
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Points of one run, joined where their means lie."""

    label: str
    points: Sequence[Point]
    number: int
    """Decides on the colour; lines of one run have the same."""
    style: str = "measured"
    """Or `beside` for the same run without memory, `reference`, or `paper` for points that are not joined."""

    @property
    def means(self) -> list[tuple[int, float]]:
        """Over the points that have the same x."""
        at: dict[int, list[float]] = defaultdict(list)
        for point in self.points:
            at[point.x].append(point.y)
        return [(x, fmean(found)) for x, found in sorted(at.items())]


@dataclass(frozen=True)
class LineChart:
    """Lines over a logarithmic axis; `is_share`: from 0 to 100%."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    is_share: bool = True
    x_shown: Callable[[int], str] = length
    beside: str = ""
    """What lines are that are drawn beside those of the same label."""


@dataclass(frozen=True)
class MapChart:
    """Shares by two numbers; None where nothing was measured."""

    title: str
    x: Sequence[int]
    y: Sequence[float]
    shares: Sequence[Sequence[float | None]]
    """By y, then x."""
    x_name: str = "tokens in memory"
    y_name: str = "depth"
    x_shown: Callable[[int], str] = length
    y_shown: Callable[[float], str] = "{:.0%}".format
    brightest: float = 1.0
    """Share that has the brightest colour."""


Chart = LineChart | MapChart

_AGAINST_TOKENS = (
    ("knn_score", "kNN score of the best key", "share of the attention on the memory", True),
    ("focus_score", "Focus score of the best key", "share among 64 neighbours", True),
    ("same_token", "The best key is of the same token", "queries", True),
)


def charts(group: Group) -> list[Chart]:
    """All plots of an experiment."""
    found: list[Chart] = []
    if _has(group, "method"):
        # several methods at one length are a table (benefit.py), and no line
        return found
    has_depth = any("depth" in row for own in group.runs for row in own.run.rows)
    if _has(group, "accuracy"):
        found += [_map(own) for own in group.runs if own.run.rows] if has_depth else []
        found.append(_accuracy(group))
    if _has(group, "perplexity"):
        found += _perplexities(group)
    for column, title, y_name, is_share in _AGAINST_TOKENS:
        if _has(group, column):
            by_chance = _lines(group, f"{column}_by_chance", style="beside")
            lines = _lines(group, column) + by_chance
            note = "dotted: a key drawn at random" if by_chance else ""
            found.append(LineChart(title, "tokens in memory", y_name, lines, is_share, beside=note))
    if _has(group, "positive_mass"):
        by_layer = [own for own in group.runs if _tells_layers_by_d(own)]
        found += [_layers(own) for own in by_layer] or [_masses(group)]
        found += [
            _heads(own) for own in group.runs if any(row.get("heads") for row in own.run.rows)
        ]
    return found


def _has(group: Group, column: str) -> bool:
    return any(row.get(column) is not None for own in group.runs for row in own.run.rows)


def _accuracy(group: Group) -> LineChart:
    lines = _lines(group, "accuracy") + _lines(group, "accuracy_without_memory", style="beside")
    longest = max(point.x for line in lines for point in line.points)
    references = {
        reference.label: reference
        for own in group.runs
        for reference in paper.points(group.name, own.run.config["settings"])
    }
    for label, reference in references.items():
        near = [Point(int(x), y) for x, y in reference.points if x <= FARTHEST * longest]
        lines += [Line(label, near, 0, "paper")] if near else []
    return LineChart(
        "Accuracy by tokens in memory",
        "tokens in memory",
        "right answers",
        lines,
        beside="dotted: the same questions with nothing in memory",
    )


def _perplexities(group: Group) -> list[LineChart]:
    """Rows with others beside the own document, which `own_tokens` tells, are about another question."""
    found = []
    for is_multi, what in ((False, "tokens in memory"), (True, "tokens of other documents")):
        lines = [
            Line(own.label, points, place)
            for place, own in enumerate(group.runs)
            if (points := _points(_rows_of(own, is_multi), "perplexity", lambda row: row["tokens"]))
        ]
        if lines:
            found.append(LineChart(f"Perplexity by {what}", what, "perplexity", lines, False))
    return found


def _rows_of(own: Labelled, is_multi: bool) -> list[Row]:
    return [row for row in own.run.rows if (row.get("own_tokens") is not None) == is_multi]


def _masses(group: Group) -> LineChart:
    """r_d; runs at several lengths of documents have a line for each."""
    several = len({row["tokens"] for own in group.runs for row in own.run.rows}) > 1
    lines = []
    for own in group.runs:
        by_tokens: dict[int, list[Row]] = defaultdict(list)
        for row in own.run.rows:
            by_tokens[row["tokens"]].append(row)
        for tokens, rows in sorted(by_tokens.items()):
            label = f"{own.label}, {length(tokens)} tokens each" if several else own.label
            points = _points(rows, "positive_mass", lambda row: row["others"] + 1)
            lines += [Line(label, points, len(lines))] if points else []
    documents = sorted({point.x for line in lines for point in line.points})
    even = [Point(d, 1 / d) for d in documents]
    lines.append(Line("1/d: no document is preferred", even, 0, "reference"))
    title = "Attention on the own document, r_d"
    return LineChart(title, "documents in memory, d", "share r_d", lines, x_shown=str)


def _tells_layers_by_d(own: Labelled) -> bool:
    return any("others" in layer for row in own.run.rows for layer in row.get("layers", ()))


def _layers(own: Labelled) -> LineChart:
    """r_d of every layer by d; of a deep model those that are proposed, and the mean of the others."""
    proposal, masses = _proposal(own), masses_by_layer(own.run.rows)
    numbers = sorted({layer for layer, _ in masses})
    apart = proposal.layers if len(numbers) > MOST_LAYERS else numbers
    lines = []
    for layer in apart:
        points = [Point(o + 1, mass) for (number, o), mass in masses.items() if number == layer]
        told = ", proposed" if layer in proposal.layers else ""
        lines.append(Line(f"layer {layer}{told}", points, len(lines)))
    if rest := [layer for layer in numbers if layer not in apart]:
        points = [Point(o + 1, mass) for (layer, o), mass in masses.items() if layer in rest]
        means = [Point(x, y) for x, y in Line("", points, 0).means]
        lines.append(Line(f"mean of the other {len(rest)} layers", means, len(lines)))
    chance = [Point(d, 1 / d) for d in sorted({1 + others for _, others in masses})]
    lines.append(Line("1/d: no document is preferred", chance, 0, "reference"))
    title = f"r_d by layer: {own.label}"
    return LineChart(title, "documents in memory, d", "share r_d", lines, x_shown=str)


def _heads(own: Labelled) -> MapChart:
    """r_d by layer and head: the mean over the rows of the longest documents, and the most of them."""
    rows = [row for row in own.run.rows if row.get("heads")]
    longest = max(row["tokens"] for row in rows)
    rows = [row for row in rows if row["tokens"] == longest]
    others = max(row["others"] for row in rows)
    at: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        for head in row["heads"]:
            if head.get("others", row["others"]) == others:
                at[head["layer"], head["head"]].append(head["positive_mass"])
    layers, heads = (sorted({place[which] for place in at}) for which in (0, 1))
    shares = [
        [fmean(at[layer, head]) if (layer, head) in at else None for head in heads]
        for layer in layers
    ]
    found = [fmean(masses) for masses in at.values()]
    chosen = _proposal(own).layers if _tells_layers_by_d(own) else ()
    return MapChart(
        f"r_d by layer and head, d = {others + 1}: {own.label}",
        heads,
        layers,
        shares,
        x_name=f"head; dark is 0, bright {max(found):.0%}, chance {1 / (others + 1):.1%}",
        y_name="layer" + (", \u25b8 proposed" if chosen else ""),
        x_shown=str,
        y_shown=lambda layer: f"\u25b8 {layer}" if layer in chosen else str(layer),
        brightest=max(*found, 1e-9),
    )


def _proposal(own: Labelled) -> Proposal:
    return propose(own.run.rows, own.run.config["settings"].get("choose"))


def _lines(group: Group, column: str, style: str = "measured") -> list[Line]:
    found = []
    for place, own in enumerate(group.runs):
        if points := _points(own.run.rows, column, lambda row: row["tokens"]):
            found.append(Line(own.label, points, place, style))
    return found


def _points(rows: Sequence[Row], column: str, x: Callable[[Row], int]) -> list[Point]:
    # depths of one length and seed are one point
    at: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get(column) is not None:
            at[x(row), row["seed"]].append(row)
    return [
        Point(place, fmean(row[column] for row in own), _interval(own, column))
        for (place, _), own in at.items()
    ]


def _interval(rows: Sequence[Row], column: str) -> tuple[float, float] | None:
    if len(rows) > 1:
        questions = {row.get("questions") or 0 for row in rows}
        # equally many at every depth; otherwise their mean has no simple interval
        examples = len(rows) * min(questions) if len(questions) == 1 else 0
        return wilson(fmean(row[column] for row in rows), examples) if examples else None
    found = rows[0].get(f"{column}{INTERVAL}")
    return None if found is None else (found[0], found[1])


def _map(own: Labelled) -> MapChart:
    """Accuracy by length and depth, the mean over seeds."""
    at: dict[tuple[float, int], list[float]] = defaultdict(list)
    for row in own.run.rows:
        if row.get("accuracy") is not None and "depth" in row:
            at[row["depth"], row["tokens"]].append(row["accuracy"])
    depths = sorted({depth for depth, _ in at})
    lengths = sorted({tokens for _, tokens in at})
    shares = [
        [fmean(at[depth, tokens]) if (depth, tokens) in at else None for tokens in lengths]
        for depth in depths
    ]
    return MapChart(f"Accuracy by length and depth: {own.label}", lengths, depths, shares)
