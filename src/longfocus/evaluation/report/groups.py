"""Runs of one experiment side by side: which of its settings tell them apart, and what is called how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longfocus.evaluation.experiments import EXPERIMENTS
from longfocus.evaluation.report.runs import Run

_MEASURED = {"tokens", "seeds"}


@dataclass(frozen=True)
class Labelled:
    """A run with its number in the report and its name among those of the same experiment."""

    run: Run
    number: int
    label: str


@dataclass(frozen=True)
class Group:
    """All runs of one experiment."""

    name: str
    runs: Sequence[Labelled]

    @property
    def summary(self) -> str:
        return EXPERIMENTS.get(self.name, "")


def groups(runs: Sequence[Run]) -> list[Group]:
    """By experiment, in the order in which `longfocus evaluate --list` names them."""
    names = [name for name in EXPERIMENTS if any(run.experiment == name for run in runs)]
    names += sorted({run.experiment for run in runs} - set(names))
    found, number = [], 1
    for name in names:
        own = [run for run in runs if run.experiment == name]
        labels = _labels(own)
        numbered = enumerate(zip(own, labels, strict=True), start=number)
        found.append(Group(name, [Labelled(run, place, label) for place, (run, label) in numbered]))
        number += len(own)
    return found


def _labels(runs: Sequence[Run]) -> list[str]:
    """The model of every run, and in what else it differs from the others."""
    models = [str(run.config.get("model", "")) for run in runs]
    names = [model.rstrip("/").rpartition("/")[2] or "unknown model" for model in models]
    if len(set(zip(models, names, strict=True))) > len(set(names)):
        names = models
    choices = [_choices(run.config) for run in runs]
    differing = [
        key
        for key in dict.fromkeys(key for own in choices for key in own)
        # a model without memory has no such entries at all, which tells nothing of the others
        if len({repr(own[key]) for own in choices if key in own}) > 1
    ]
    labels = [
        ", ".join([name, *(_told(key, own[key]) for key in differing if _is_told(own.get(key)))])
        for name, own in zip(names, choices, strict=True)
    ]
    return [
        label if labels.count(label) == 1 else f"{label} ({run.folder.name})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that may tell runs apart; what a run did not choose is as its model has it."""
    found = {key: own for key, own in config["settings"].items() if key not in _MEASURED}
    focus, memory = (config.get(part) or {} for part in ("focus", "memory"))
    chosen = {key: own for key, own in memory.items() if own is not None}
    return {**found, **focus, **chosen, "window_prefix": config.get("window_prefix")}


def _is_told(own: Any) -> bool:
    return own is not None and own is not False and own != []


def _told(key: str, own: Any) -> str:
    name = key.replace("_", " ")
    if own is True:
        return name
    if isinstance(own, float) and own.is_integer():
        own = int(own)
    return f"{name} {' '.join(map(str, own)) if isinstance(own, list) else own}"
