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
from longfocus.evaluation.report.runs import Row
from longfocus.evaluation.shown import length

Window = tuple[int, str, int]
"""Seed, document, place."""
NOTHING = "-"
"""In a cell, where nothing can be compared."""


@dataclass(frozen=True)
class PairedTable:
    """Differences of losses, in nats per token: less is better."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Measured:
    """The losses of a run, or of one of its methods."""

    number: int
    label: str
    losses: Mapping[int, Mapping[Window, float]]
    """By tokens in memory, ascending."""
    has_others: bool
    """Whether these are tokens of other documents, beside the own one."""

    @property
    def longest(self) -> Mapping[Window, float]:
        """The losses at the greatest length."""
        return self.losses[max(self.losses)]

    @property
    def shortest(self) -> int:
        """The least length with something in memory that may help; where others are in memory, nothing of theirs."""
        return min(tokens for tokens in self.losses if tokens or self.has_others)


def tables(group: Group) -> list[PairedTable]:
    """None where no run has losses."""
    measured = [found for own in group.runs for found in _measured(own)]
    of_one_kind: dict[object, list[_Measured]] = defaultdict(list)
    alike: dict[object, list[_Measured]] = defaultdict(list)
    for own in measured:
        of_one_kind[own.has_others, own.shortest].append(own)
        # the same windows at the same greatest length
        alike[own.has_others, max(own.losses), frozenset(own.longest)].append(own)
    found = [_between_lengths(runs) for runs in of_one_kind.values()]
    found += [_between_runs(runs) for runs in alike.values()]
    return [table for table in found if table is not None]


def _measured(own: Labelled) -> list[_Measured]:
    """Finished cells; a run of several methods has each of them."""
    rows = {_cell(row): row for row in own.run.rows if "loss" in row}
    found: dict[str, dict[int, dict[Window, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in own.run.records() if rows else ():
        if "place" in record and _cell(record) in rows:
            window = (record["seed"], record["document"], record["place"])
            found[record.get("method", "")][record["tokens"]][window] = record["loss"]
    has_others = any(row.get("own_tokens") is not None for row in rows.values())
    return [
        _Measured(
            own.number,
            f"{own.label}, {method}" if method else own.label,
            dict(sorted(losses.items())),
            has_others,
        )
        for method, losses in found.items()
        if has_others or any(losses)
    ]


def _cell(entry: Row) -> tuple[object, ...]:
    return tuple(entry.get(key) for key in ("method", "task", "tokens", "seed"))


def _between_lengths(runs: Sequence[_Measured]) -> PairedTable | None:
    """Every length against the shortest."""
    shortest = runs[0].shortest
    longer = sorted({tokens for own in runs for tokens in own.losses if tokens > shortest})
    rows = [
        [str(own.number), own.label, *(_told(own, tokens, own, shortest) for tokens in longer)]
        for own in runs
    ]
    rows = [row for row in rows if set(row[2:]) - {NOTHING}]
    if not rows:
        return None
    least = f"{length(shortest)} tokens" if shortest else "no other documents"
    caption = f"Loss of the same windows, less that with {least} in memory"
    return PairedTable(caption, ["run", "", *map(length, longer)], rows)


def _between_runs(runs: Sequence[_Measured]) -> PairedTable | None:
    """Every run against the one with the least loss at their greatest length."""
    if len(runs) < 2:
        return None
    best = min(runs, key=lambda own: fmean(own.longest.values()))
    rows = [
        [str(own.number), own.label, *(_told(own, tokens, best, tokens) for tokens in best.losses)]
        for own in runs
        if own is not best
    ]
    caption = f"Loss of the same windows, less that of run {best.number} ({best.label})"
    return PairedTable(caption, ["run", "", *map(length, best.losses)], rows)


def _told(one: _Measured, tokens: int, other: _Measured, other_tokens: int) -> str:
    """The mean difference with its interval; nothing for other windows."""
    left, right = one.losses.get(tokens, {}), other.losses.get(other_tokens, {})
    if not left or left.keys() != right.keys():
        return NOTHING
    windows = sorted(left)
    differences = [left[window] - right[window] for window in windows]
    found = mean_over_groups(differences, [document for _, document, _ in windows], "change")
    if found["change_interval"] is None:
        return f"{found['change']:+.4f}"
    low, high = found["change_interval"]
    return f"{found['change']:+.4f} ({low:+.4f} to {high:+.4f})"
