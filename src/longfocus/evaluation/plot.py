"""Plots of results. One of the files that know matplotlib, an optional dependency (`pip install longfocus[plot]`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longfocus.atomic import whole_file
from longfocus.evaluation.layers_choice import Proposal, masses_by_layer
from longfocus.evaluation.shown import length

Rows = Sequence[Mapping[str, Any]]

_BLUE, _ORANGE, _GREY = "#0b6fb8", "#d9730d", "#8a8a8a"


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with whole_file(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})


def demo(found: Mapping[str, Rows], path: Path) -> None:
    """The demo's picture: accuracy and perplexity against tokens of memory, as PNG."""
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
        figure = Figure(figsize=(13.5, 3.4), layout="constrained")
        axes = figure.subplots(1, 1 + len(panels))
        _perplexity(axes[0], found["text"])
        for axis, (title, kind, lines) in zip(axes[1:], panels, strict=True):
            _panel(axis, title, found[kind], lines)
        axes[1].set_ylabel("answers right")
        save(figure, path)


def _perplexity(axis: Axes, rows: Rows) -> None:
    """Evenly apart, for one of the lengths is 0; empty where nothing was measured."""
    axis.plot([row["perplexity"] for row in rows], "-o", color=_BLUE, markersize=4)
    axis.set_title("Reading real text", loc="left")
    axis.set_xticks(range(len(rows)), [length(row["tokens"]) for row in rows])
    axis.set_xlabel("tokens of memory")
    axis.set_ylabel("perplexity of the next tokens")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


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
    axis.set_xticks(lengths, list(map(length, lengths)))
    axis.minorticks_off()
    axis.set_xlabel("tokens of memory")
    axis.set_ylim(0, 103)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0f}%")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left")


def layers(rows: Rows, proposal: Proposal, path: Path) -> None:
    """r_d of every layer and head at the largest d, and of every layer by d, as PNG; chosen layers are marked."""
    masses = masses_by_layer(rows)
    numbers = sorted({layer for layer, _ in masses})
    with mpl.rc_context({"font.size": 9}):
        height = min(max(3.6, 0.8 + 0.2 * len(numbers)), 14)
        figure = Figure(figsize=(11, height), layout="constrained")
        heat, curves = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _heads(figure, heat, rows, proposal, numbers)
        _curves(curves, masses, proposal)
        save(figure, path)


def _heads(
    figure: Figure, axis: Axes, rows: Rows, proposal: Proposal, numbers: Sequence[int]
) -> None:
    """A map of layer and head, the mean over the rows of the longest documents."""
    longest, others = max(row["tokens"] for row in rows), proposal.measured_d - 1
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        for own in row["heads"] if row["tokens"] == longest else ():
            if own["others"] == others:
                found.setdefault((own["layer"], own["head"]), []).append(own["positive_mass"])
    heads = 1 + max(head for _, head in found)
    shares = [
        [sum(found[layer, head]) / len(found[layer, head]) for head in range(heads)]
        for layer in numbers
    ]
    picture = axis.imshow(shares, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    figure.colorbar(picture, ax=axis, format=lambda share, _: f"{share:.0%}")
    axis.set_title(f"r_d by layer and head, d = {proposal.measured_d}", loc="left")
    axis.set_xlabel("head")
    axis.set_ylabel("layer (\u25b8 proposed)")
    axis.set_xticks(range(0, heads, -(-heads // 16)))
    shown = range(0, len(numbers), -(-len(numbers) // 40))
    places = sorted({*shown, *(numbers.index(layer) for layer in proposal.layers)})
    names = [f"\u25b8 {n}" if (n := numbers[at]) in proposal.layers else str(n) for at in places]
    axis.set_yticks(places, names)
    axis.tick_params(length=0)


def _curves(axis: Axes, masses: Mapping[tuple[int, int], float], proposal: Proposal) -> None:
    """r_d by d, of every layer; those that were not chosen in grey."""
    by_d = sorted({1 + others for _, others in masses})
    numbers = sorted({layer for layer, _ in masses})
    for layer in [n for n in numbers if n not in proposal.layers]:
        axis.plot(by_d, [masses[layer, d - 1] for d in by_d], color="#bbbbbb", linewidth=0.9)
    if len(numbers) > len(proposal.layers):
        axis.plot([], [], color="#bbbbbb", linewidth=0.9, label="other layers")
    for place, layer in enumerate(proposal.layers):
        colour = (_BLUE, _ORANGE, "#2a8a4a", "#8a4a9a")[place % 4]
        shares = [masses[layer, d - 1] for d in by_d]
        axis.plot(by_d, shares, "o-", color=colour, markersize=4, label=f"layer {layer}")
    axis.plot(by_d, [1 / d for d in by_d], "--", color="black", linewidth=1, label="chance, 1/d")
    axis.set_title("r_d by d", loc="left")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(by_d, [str(d) for d in by_d])
    axis.minorticks_off()
    axis.set_xlabel("documents in memory, d")
    lowest, highest = min([*masses.values(), 1 / by_d[-1]]), max(*masses.values(), 1 / by_d[0])
    steps = [s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if lowest / 1.5 < s <= highest * 1.5]
    axis.set_yticks(steps, [f"{share:.0%}" for share in steps])
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
