"""Does it help? Runs of `benefit` in one table: a row for each method of a model, a column for each task and length.

Only what was asked alike stands in one table: the same wording, questions and documents, in texts of the same content,
with prompts of the same length. A cell is the mean over seeds,
with the seconds of reading and answering, and the bytes that are kept of the text. Where memory is behind another
method is said below the table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from longfocus.evaluation.experiment import PLAIN_WINDOW
from longfocus.evaluation.intervals import wilson
from longfocus.evaluation.report.groups import Group, Labelled
from longfocus.evaluation.report.runs import Row
from longfocus.evaluation.shown import length, value

NAME = "benefit"
_FREE = {"methods", "tasks", "tokens", "seeds"}
"""Settings in which runs of one table may differ."""
Column = tuple[str, int]
"""Task and tokens."""


@dataclass(frozen=True)
class BenefitTable:
    """One table, and where memory is behind."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    behind: Sequence[str]
    has_memory: bool
    """Whether a memory was measured."""

    @property
    def verdict(self) -> str:
        """Before what `behind` lists."""
        if self.behind:
            return "Where memory is behind, by the means:"
        return "Memory is behind nowhere." if self.has_memory else "No memory was measured."


@dataclass(frozen=True)
class _Line:
    """A method of a run."""

    run: Labelled
    method: str
    cells: Mapping[Column, Sequence[Row]]

    @property
    def model(self) -> str:
        """Its name, with what else its windows begin with."""
        config = self.run.run.config
        name = str(config.get("model", "")).rstrip("/").rpartition("/")[2] or "unknown model"
        prefix = config.get("window_prefix")
        if not prefix:
            return name
        told = prefix if isinstance(prefix, str) else " ".join(map(str, prefix))
        return f"{name}, {told} at every window"

    @property
    def told(self) -> str:
        words = self.run.run.command.split()
        is_attached = any(word.partition("=")[0] == "--memory-layers" for word in words)
        return f"{self.method}, not trained" if self.is_memory and is_attached else self.method

    @property
    def is_memory(self) -> bool:
        return self.method.startswith("memory")

    def seeds(self, column: Column) -> set[object]:
        return {row["seed"] for row in self.cells.get(column, ()) if "note" not in row}

    def measure(self, column: Column, seeds: set[object]) -> tuple[str, float] | None:
        """The share of right answers, or the loss: its name and mean over these seeds."""
        rows = [row for row in self.cells.get(column, ()) if row["seed"] in seeds]
        for name in ("accuracy", "loss"):
            if found := _numbers(rows, name):
                return name, fmean(found)
        return None


def tables(group: Group) -> list[BenefitTable]:
    """None of another experiment."""
    if group.name != NAME:
        return []
    alike: dict[tuple[object, ...], list[Labelled]] = defaultdict(list)
    for own in (own for own in group.runs if own.run.rows):
        alike[_kind(own.run.config)].append(own)
    found: list[BenefitTable] = []
    for runs in alike.values():
        caption = _caption(runs[0].run.config["settings"])
        if any(table.caption == caption for table in found):
            caption += f" (not asked as above: {_kind_told(runs[0].run.config)})"
        found.append(_table(caption, runs))
    return found


def _kind(config: Mapping[str, Any]) -> tuple[object, ...]:
    """What runs have in common that were asked alike."""
    settings = config["settings"]
    # under this task the longest memory decides on the evaluated windows
    longest = max(settings["tokens"]) if "loss" in settings.get("tasks", ()) else None
    texts = tuple(sorted((config.get("files") or {}).items()))
    return _caption(settings), longest, texts, _texts_told(config), _prompt_of(config)


def _kind_told(config: Mapping[str, Any]) -> str:
    return f"{_texts_told(config)}, tokens up to {max(config['settings']['tokens'])}, prompts of {_prompt_of(config)}"


def _texts_told(config: Mapping[str, Any]) -> str:
    tokenizer = str((config.get("fingerprint") or {}).get("tokenizer", ""))
    return f"tokenizer {tokenizer[:8]}, words {str(config.get('words'))[:8]}"


def _prompt_of(config: Mapping[str, Any]) -> int:
    """Tokens of a prompt: as asked for, else a window."""
    window = (config.get("focus") or {}).get("window") or PLAIN_WINDOW
    return config["settings"].get("budget") or window


def _caption(settings: Mapping[str, object]) -> str:
    told = [
        f"{name.replace('_', ' ')} {_joined(own)}"
        for name, own in sorted(settings.items())
        if name not in _FREE and own not in (None, [], ())
    ]
    return ", ".join(told)


def _joined(own: object) -> str:
    return " ".join(map(str, own)) if isinstance(own, (list, tuple)) else str(own)


def _table(caption: str, runs: Sequence[Labelled]) -> BenefitTable:
    lines = [line for own in runs for line in _lines(own)]
    tasks = list(dict.fromkeys(task for line in lines for task, _ in line.cells))
    columns = sorted(
        {column for line in lines for column in line.cells},
        key=lambda column: (tasks.index(column[0]), column[1]),
    )
    head = ["run", "model", "method", "prompt tokens", *map(_column, columns)]
    rows = [
        [
            str(line.run.number),
            line.model,
            line.told,
            _prompt(line),
            *(_cell(line.cells.get(column, ())) for column in columns),
        ]
        for line in lines
    ]
    has_memory = any(line.seeds(column) for line in lines if line.is_memory for column in columns)
    return BenefitTable(caption, head, rows, _behind(lines, columns), has_memory)


def _lines(own: Labelled) -> list[_Line]:
    found: dict[str, dict[Column, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in own.run.rows:
        found[str(row.get("method"))][str(row.get("task")), row["tokens"]].append(row)
    return [_Line(own, method, cells) for method, cells in found.items()]


def _column(column: Column) -> str:
    return f"{column[0]} {length(column[1])}"


def _prompt(line: _Line) -> str:
    found = [most for rows in line.cells.values() for most in _numbers(rows, "prompt_tokens")]
    return f"{max(found):,.0f}" if found else "-"


def _cell(rows: Sequence[Row]) -> str:
    """The measure, then seconds and bytes; or why there is none."""
    if not rows:
        return "-"
    if notes := [str(row["note"]) for row in rows if "note" in row]:
        return notes[0]
    seconds = [sum(_numbers([row], "reading_seconds", "answering_seconds")) for row in rows]
    costs = [f"{value('_seconds', fmean(seconds))} s"]
    if nbytes := _numbers(rows, "memory_bytes"):
        costs.append(_shown_bytes(max(nbytes)))
    return ", ".join([_measured(rows), *costs])


def _measured(rows: Sequence[Row]) -> str:
    if right := _numbers(rows, "accuracy"):
        # every seed has equally many questions
        questions = int(sum(_numbers(rows, "questions")))
        ends = [f"{end:.0%}" for end in wilson(fmean(right), questions)] if questions else []
        return f"{fmean(right):.1%}" + (f" ({' to '.join(ends)})" if ends else "")
    if losses := _numbers(rows, "loss"):
        changes = _numbers(rows, "loss_change")
        return value("loss", fmean(losses)) + (f" ({fmean(changes):+.4f})" if changes else "")
    return "-"


def _shown_bytes(number: float) -> str:
    return f"{number / 2**20:,.1f} MiB" if number >= 2**20 else f"{number / 2**10:,.0f} KiB"


def _behind(lines: Sequence[_Line], columns: Sequence[Column]) -> list[str]:
    """Where the best of the other methods is better than a memory."""
    found = []
    for column in columns:
        for line in (line for line in lines if line.is_memory):
            # other seeds are other questions
            others = [
                (other, other.measure(column, common), line.measure(column, common))
                for other in lines
                if not other.is_memory and (common := line.seeds(column) & other.seeds(column))
            ]
            behind = [entry for entry in others if _goodness(entry[1]) > _goodness(entry[2])]
            if behind:
                best, measure, own = max(behind, key=lambda entry: _goodness(entry[1]))
                found.append(
                    f"{_column(column)}: {line.model}, {line.told} ({_shown(own)}) is behind {best.model}, "
                    f"{best.told} ({_shown(measure)})"
                )
    return found


def _goodness(measure: tuple[str, float] | None) -> float:
    assert measure is not None
    name, mean = measure
    # a loss is better when it is less
    return -mean if name == "loss" else mean


def _shown(measure: tuple[str, float] | None) -> str:
    assert measure is not None
    return value(*measure)


def _numbers(rows: Sequence[Row], *names: str) -> list[float]:
    """Those of the entries that are numbers; rows come from files."""
    found = [row.get(name) for row in rows for name in names]
    return [own for own in found if isinstance(own, (int, float)) and not isinstance(own, bool)]
