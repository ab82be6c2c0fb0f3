"""One run of the bench: what its measurements share, and how they are chosen, started and interrupted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import machine, models
from longfocus.evaluation.speed.equality import Unequal
from longfocus.evaluation.speed.rows import Report, Row
from longfocus.evaluation.speed.settings import Settings, Shape
from longfocus.evaluation.speed.timing import Contestant, Timing, race

Made = TypeVar("Made")


@dataclass(frozen=True)
class Measurement:
    """Something that `--only` names."""

    run: Callable[["Bench"], None]
    minutes: float
    """About how long it takes on one core of the machine of docs/speed.md."""


@dataclass
class Bench:
    """A run in progress."""

    settings: Settings
    report: Report
    tell: Callable[[str], None] = lambda text: None
    """Told what is being done."""
    name: str = ""
    """The measurement that is being made."""
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """What measurements share is made once: models, memories, checks that came out well."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def random_model(self, shape: Shape) -> Any:
        return self.once(shape, lambda: models.random_model(shape))

    def race(self, contestants: dict[str, Contestant], least: int = 1) -> dict[str, Timing]:
        """All of them in turn, as often as the settings say and `least`."""
        return race(
            contestants,
            max(self.settings.repetitions, least),
            lambda text: self.tell(f"{self.name}: {text}"),
        )

    def contestant(self, run: Any, why_not: str = "") -> Contestant:
        """One that is stopped at the limit of the settings."""
        return Contestant(run, why_not, self.settings.limit_seconds)

    def add(self, row: Row) -> None:
        self.report.rows.append(replace(row, name=self.name))


def shapes(settings: Settings) -> dict[str, Shape]:
    """The random models by the name that rows show."""
    two = settings.shape
    grouped = replace(two, kv_heads=settings.grouped_kv_heads)
    one = replace(two, memory_layers=settings.one_layer)
    return {"two layers": two, "two layers, GQA": grouped, "one layer": one}


def new_report(settings: Settings) -> Report:
    return Report(
        threads=settings.threads,
        versions=machine.versions(),
        hardware=machine.hardware(),
        settings=asdict(settings),
    )


def chosen(measurements: dict[str, Measurement], only: Sequence[str]) -> list[str]:
    """The names to measure: all, or those that are named, or begin with a name."""
    if not only:
        return list(measurements)
    found: list[str] = []
    for given in only:
        fitting = [given] if given in measurements else []
        fitting = fitting or [name for name in measurements if name.startswith(f"{given}_")]
        if not fitting:
            raise LongFocusError(
                f"--only {given}: there is no such measurement. Allowed: {', '.join(measurements)}, or how several of "
                "them begin, such as reading."
            )
        found += [name for name in fitting if name not in found]
    return found


def measure(
    bench: Bench,
    measurements: dict[str, Measurement],
    names: Sequence[str],
    *,
    output: Path | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> None:
    """Make the measurements one after the other; what is finished is in the report, and in `output`, at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(bench.settings.threads)
    started, done = time.perf_counter(), 0.0
    total = sum(measurements[name].minutes for name in names)
    try:
        for name in names:
            if name not in bench.report.finished:
                _measure_one(bench, measurements[name], name, started)
                if output is not None:
                    bench.report.write(output)
            done += measurements[name].minutes
            progress(done, total)
    except KeyboardInterrupt:
        bench.report.is_interrupted = True
    except Unequal as error:
        bench.report.refused = str(error)
        raise
    finally:
        torch.set_num_threads(before)
        if output is not None:
            bench.report.write(output)


def _measure_one(bench: Bench, measurement: Measurement, name: str, started: float) -> None:
    budget = bench.settings.budget_seconds
    bench.name = name
    left = None if budget is None else budget - (time.perf_counter() - started)
    if left is not None and measurement.minutes * 60 > left:
        bench.report.left_out[name] = f"it takes about {measurement.minutes:.1f} minutes"
        return
    bench.tell(name)
    measurement.run(bench)
    bench.report.finished.append(name)
