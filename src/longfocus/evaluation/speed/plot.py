"""The picture of a bench: reading and decoding by length, ours and the peers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from longfocus.evaluation.speed.pairs import short
from longfocus.evaluation.speed.rows import Row

_STYLES = ("-", "--", ":", "-.")
Value = Callable[[int, float], float]
Line = tuple[str, dict[int, float]]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Tokens read per second and milliseconds per decoded token, against tokens, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from longfocus.evaluation.plot import save

    panels = (
        ("Reading: tokens per second", lines(rows, "reading", lambda n, s: n / s)),
        ("Decoding: milliseconds per token", lines(rows, "decoding", lambda n, s: 1000 * s)),
    )
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        for axis, (title, found) in zip(figure.subplots(1, 2), panels, strict=True):
            for place, (name, points) in enumerate(found):
                style = _STYLES[place // 6 % len(_STYLES)]
                tokens = sorted(points)
                values = [points[n] for n in tokens]
                axis.plot(tokens, values, style, marker="o", markersize=4, label=name)
            axis.set_title(title, loc="left")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({n for _, points in found for n in points})
            axis.set_xticks(ticks, [short(n).upper() for n in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if found:
                axis.legend(frameon=False, fontsize=7)
        save(figure, path)


def lines(rows: Sequence[Row], what: str, value: Value) -> list[Line]:
    """What was measured at any length, by model and by who did it; in the order of the rows."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.what != what:
            continue
        for who, seconds in _times(row):
            if seconds is not None:
                found.setdefault(f"{row.model}: {who}", {})[row.tokens] = value(row.tokens, seconds)
    return list(found.items())


def _times(row: Row) -> Iterator[tuple[str, float | None]]:
    yield f"ours, {row.ours}", row.ours_seconds
    if row.peer is not None:
        yield row.peer.replace("_", " "), row.peer_seconds
