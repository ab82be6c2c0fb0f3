"""What `longfocus evaluate layers` says below its table: every layer, and the options of a training that follow."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.evaluation.layers_choice import (
    CLEARLY,
    Proposal,
    masses_by_layer,
    preference,
    propose,
    ranking,
)
from longfocus.evaluation.shown import length

if TYPE_CHECKING:
    from rich.console import Console

    from longfocus.evaluation.results import Results

EARLY_SHARE, STEPS = 5, 1000
"""One step in so many has the small d; and steps, in the command that is shown."""


def conclude(console: "Console", settings: Any, results: "Results", plot: Path | None) -> None:
    """Show every layer and the proposal; write the picture if one is asked for."""
    proposal = propose(results.rows, settings.choose)
    _show_layers(console, results.rows, proposal)
    for line in proposed(proposal, results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if plot is not None:
        from longfocus.evaluation.plot import layers

        layers(results.rows, proposal, plot)
        console.print(f"The picture is in {plot}", highlight=False, soft_wrap=True)


def _show_layers(console: "Console", rows: Sequence[Any], proposal: Proposal) -> None:
    from rich.table import Table

    masses, ranked = masses_by_layer(rows), ranking(rows)
    numbers = sorted({others for _, others in masses})
    table = Table(title="r_d by layer", title_justify="left", title_style="bold")
    for name in ("layer", *(f"d = {1 + others}" for others in numbers)):
        table.add_column(name, justify="right")
    # a mean over the same rows as r_d
    more = {"preference": "preferred", "clear_heads": "clear heads", "memory_share": "memory"}
    for name in (*more.values(), "rank", ""):
        table.add_column(name, justify="right")
    places = {own.layer: place for place, own in enumerate(ranked, 1)}
    for layer in sorted(places):
        beside = _beside(rows, layer, numbers[-1])
        table.add_row(
            str(layer),
            *(f"{masses[layer, others]:.1%}" for others in numbers),
            f"{preference(masses[layer, numbers[-1]], numbers[-1]):.2f}x",
            f"{beside['clear_heads']:.0%}",
            f"{beside['memory_share']:.0%}",
            str(places[layer]),
            "proposed" if layer in proposal.layers else "",
        )
    table.add_row("chance", *(f"{1 / (1 + others):.1%}" for others in numbers), "1.00x")
    console.print(table)
    about = (
        f"At d = {1 + numbers[-1]}: preferred, how many times as much attention the own document gets as another on "
        f"average; clear heads, those where it is more than {CLEARLY:g} times; memory, the share of the attention that "
        "would fall on the memory and not on the window."
    )
    console.print(about, highlight=False)


def _beside(rows: Sequence[Any], layer: int, others: int) -> dict[str, float]:
    """The other entries of a layer, averaged as r_d is."""
    longest = max(row["tokens"] for row in rows)
    found = [
        own
        for row in rows
        if row["tokens"] == longest
        for own in row["layers"]
        if (own["layer"], own["others"]) == (layer, others)
    ]
    return {
        name: sum(own[name] for own in found) / len(found)
        for name in ("clear_heads", "memory_share")
    }


def proposed(proposal: Proposal, results: "Results") -> list[str]:
    """The proposal in words, and the command that trains by it."""
    row, start = results.rows[0], proposal.start_d
    several = "s" if len(proposal.layers) > 1 else ""
    lines = [
        f"Proposed memory layer{several}: {' '.join(map(str, proposal.layers))}, ranked by r_d at "
        f"d = {proposal.measured_d} in windows of {length(row['window_tokens'])} tokens."
    ]
    if proposal.is_clear:
        lines.append(
            f"Proposed d: {start} at first, where the own document is clearly preferred before any training, then "
            f"{proposal.final_d}."
        )
    else:
        lines.append(
            f"Proposed d: {start} at first, then {proposal.final_d}. At no measured d is the own document clearly "
            "preferred before training."
        )
    focus = results.config.get("focus") or {}
    if set(proposal.layers) <= set(focus.get("memory_layers", ())):
        lines.append("The model has its memory in these layers already.")
    else:
        lines.append(
            "This is a proposal from a model that was not trained to use these layers; what training makes of them is "
            "not measured here."
        )
    return [
        *lines,
        shlex.join(train_words(proposal, results.config, row["window_tokens"])),
    ]


def train_words(proposal: Proposal, config: Any, window: int) -> list[str]:
    """The command that trains by a proposal."""
    early = STEPS // EARLY_SHARE
    positions = (config.get("focus") or config["settings"])["positions"]
    return [
        *("longfocus", "train", "continue", "--model", str(config["model"])),
        *("--data", "TEXTS", "--output", "FOLDER"),
        *("--memory-layers", *map(str, proposal.layers)),
        *("--window", str(window), "--positions", str(positions)),
        # in the paper's plan half of the windows of a batch are seen by the others
        *("--batch-size", str(2 * proposal.final_d), "--max-steps", str(STEPS)),
        *("--d", f"{proposal.start_d} until step {early} then {proposal.final_d}"),
    ]
