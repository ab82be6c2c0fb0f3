"""Losses compared window by window: of runs with each other, and of longer memories with shorter ones.

Windows differ far more from each other than models do, so two means with an interval each say little; the mean of the
differences on the same windows, with its interval over documents, says it. Only what was measured on exactly the same
windows is compared.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from longfocus.evaluation.intervals import mean_over_groups
from longfocus.evaluation.report.groups import Group, Labelled
from longfocus.evaluation.shown import length

Window = tuple[int, str, int]
"""Seed, document, place."""
NOTHING = "-"
"""In a cell, where nothing can be compared."""
Losses = Mapping[int, Mapping[Window, float]]
"""By tokens in memory."""


@dataclass(frozen=True)
class PairedTable:
    """Differences of losses, in nats per token: less is better."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(group: Group) -> list[PairedTable]:
    """None where no run has losses."""
    losses = {own.number: _losses(own) for own in group.runs}
    runs = [own for own in group.runs if losses[own.number]]
    found = [_between_lengths(runs, losses)]
    found += [_between_runs(alike, losses) for alike in _alike(runs, losses)]
    return [table for table in found if table is not None]


def _losses(own: Labelled) -> Losses:
    """Those of finished cells."""
    if not any("loss" in row for row in own.run.rows):
        return {}
    finished = {(row["tokens"], row["seed"]) for row in own.run.rows}
    found: dict[int, dict[Window, float]] = defaultdict(dict)
    for record in own.run.records():
        if "place" in record and (record["tokens"], record["seed"]) in finished:
            window = (record["seed"], record["document"], record["place"])
            found[record["tokens"]][window] = record["loss"]
    return dict(sorted(found.items()))


def _between_lengths(runs: Sequence[Labelled], losses: Mapping[int, Losses]) -> PairedTable | None:
    """Every length against the shortest with anything in memory."""
    lengths = sorted({tokens for own in runs for tokens in losses[own.number] if tokens})
    if len(lengths) < 2:
        return None
    shortest, *longer = lengths
    rows = [
        [
            str(own.number),
            own.label,
            *(_told(losses[own.number], tokens, losses[own.number], shortest) for tokens in longer),
        ]
        for own in runs
    ]
    rows = [row for row in rows if set(row[2:]) != {NOTHING}]
    if not rows:
        return None
    caption = f"Loss of the same windows, less that with {length(shortest)} tokens in memory"
    return PairedTable(caption, ["run", "", *map(length, longer)], rows)


def _between_runs(runs: Sequence[Labelled], losses: Mapping[int, Losses]) -> PairedTable | None:
    """Every run against the one with the least loss at their greatest length."""
    if len(runs) < 2:
        return None
    best = min(runs, key=lambda own: fmean(_longest(losses[own.number]).values()))
    lengths = sorted(losses[best.number])
    rows = [
        [
            str(own.number),
            own.label,
            *(_told(losses[own.number], tokens, losses[best.number], tokens) for tokens in lengths),
        ]
        for own in runs
        if own is not best
    ]
    caption = f"Loss of the same windows, less that of run {best.number} ({best.label})"
    return PairedTable(caption, ["run", "", *map(length, lengths)], rows)


def _alike(runs: Sequence[Labelled], losses: Mapping[int, Losses]) -> list[list[Labelled]]:
    """Runs that have the same greatest length, and there the same windows."""
    kinds: dict[object, list[Labelled]] = defaultdict(list)
    for own in runs:
        kinds[max(losses[own.number]), frozenset(_longest(losses[own.number]))].append(own)
    return list(kinds.values())


def _longest(losses: Losses) -> Mapping[Window, float]:
    return losses[max(losses)]


def _told(one: Losses, tokens: int, other: Losses, other_tokens: int) -> str:
    """The mean difference with its interval; nothing for other windows."""
    left, right = one.get(tokens, {}), other.get(other_tokens, {})
    if not left or left.keys() != right.keys():
        return NOTHING
    windows = sorted(left)
    differences = [left[window] - right[window] for window in windows]
    found = mean_over_groups(differences, [document for _, document, _ in windows], "change")
    if found["change_interval"] is None:
        return f"{found['change']:+.4f}"
    low, high = found["change_interval"]
    return f"{found['change']:+.4f} ({low:+.4f} to {high:+.4f})"
