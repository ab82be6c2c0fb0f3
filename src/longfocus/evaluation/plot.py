"""Plots of results. The only file that knows matplotlib, an optional dependency (`pip install longfocus[plot]`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

_BLUE, _ORANGE, _GREY = "#0b6fb8", "#d9730d", "#8a8a8a"


def accuracy_by_length(found: Mapping[str, Rows], path: Path) -> None:
    """The demo's picture: accuracy against tokens of memory, as PNG."""
    panels = (
        (
            "Pass keys in real code",
            "passkey",
            (
                ("40 keys", "accuracy", _BLUE, "-"),
                ("one key", "accuracy_one_key", _BLUE, ":"),
                ("without memory", "accuracy_without_memory", _GREY, "--"),
            ),
        ),
        (
            "Four other pass keys in every window",
            "passkey_hard",
            (
                ("crossbatch", "accuracy", _BLUE, "-"),
                ("d = 1", "accuracy_d1", _ORANGE, "-"),
                ("without memory", "accuracy_without_memory", _GREY, "--"),
            ),
        ),
        (
            "Dictionary lookup",
            "dictionary",
            (
                ("with memory", "accuracy", _BLUE, "-"),
                ("without memory", "accuracy_without_memory", _GREY, "--"),
            ),
        ),
    )
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "longfocus"}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, kind, lines) in zip(axes, panels, strict=True):
            _panel(axis, title, found[kind], lines)
        axes[0].set_ylabel("answers right")
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def _panel(axis: Axes, title: str, rows: Rows, lines: Sequence[tuple[str, str, str, str]]) -> None:
    lengths = [row["tokens"] for row in rows]
    for name, field, colour, style in lines:
        shares = [100 * row[field] for row in rows]
        axis.plot(
            lengths,
            shares,
            style,
            color=colour,
            marker="o",
            markersize=4,
            label=name,
            clip_on=False,
        )
    axis.set_title(title, loc="left")
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [_short(length) for length in lengths])
    axis.minorticks_off()
    axis.set_xlabel("tokens of memory")
    axis.set_ylim(0, 103)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0f}%")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left")


def _short(tokens: int) -> str:
    return f"{tokens // 1024**2}M" if tokens >= 1024**2 else f"{tokens // 1024}K"
