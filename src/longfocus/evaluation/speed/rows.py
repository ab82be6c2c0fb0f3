"""What the bench measured: one row per measurement, the ratios among them, and their JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from longfocus.atomic import write_text
from longfocus.errors import LongFocusError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: ours, and one peer's beside it."""

    name: str = ""
    """The measurement that it belongs to, as `--only` takes it."""
    what: str
    """What was done: reading, decoding, kernel, window, ..."""
    model: str
    tokens: int
    """Tokens read, or in memory."""
    ours: str
    """Which of our paths was taken."""
    ours_seconds: float | None = None
    """Median; of reading in all, of decoding per token, of a search per call."""
    peer: str | None = None
    peer_seconds: float | None = None
    ours_bytes: int | None = None
    peer_bytes: int | None = None
    ratio: float | None = None
    """What `key` names; without a key, theirs / ours."""
    key: str | None = None
    """The name of `ratio` among the ratios of the run."""
    retained_mass: float | None = None
    """Mean share of the attention that ours keeps; None where nothing is left out."""
    retained_mass_least: float | None = None
    """The least of all queries."""
    peer_retained_mass: float | None = None
    repetitions: int = 0
    note: str = ""
    """Why something was not measured, or what the peer does and does not do."""

    def of(self, **changes: Any) -> "Row":
        """The same row with other entries."""
        return replace(self, **changes)


@dataclass
class Report:
    """All rows of one run, in the order of their measurement."""

    threads: int
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    """Measurements that came to their end."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Measurements that did not fit in the time of the run, and why."""
    is_interrupted: bool = False
    refused: str = ""
    """Why there are no ratios: a check that what is compared is the same has failed."""

    @property
    def ratios(self) -> dict[str, float]:
        """What was measured, by its name; what was not is absent."""
        if self.refused:
            return {}
        return {
            row.key: row.ratio for row in self.rows if row.key is not None and row.ratio is not None
        }

    def to_dict(self) -> dict[str, Any]:
        run = {"threads": self.threads, "versions": self.versions, "hardware": self.hardware}
        return {
            **run,
            "settings": self.settings,
            "finished": self.finished,
            "interrupted": self.is_interrupted,
            "left_out": self.left_out,
            "refused": self.refused,
            "ratios": self.ratios,
            "rows": [{**asdict(row), **run} for row in self.rows if not self.refused],
        }

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def take_over(self, path: Path) -> None:
        """Take the finished measurements of an earlier run of the same settings on the same machine."""
        try:
            found = json.loads(path.read_text())
            same = all(
                found[name] == json.loads(json.dumps(getattr(self, name)))
                for name in ("threads", "versions", "hardware", "settings")
            )
            names = {entry.name for entry in fields(Row)}
            rows = [Row(**{name: row[name] for name in names}) for row in found["rows"]]
            finished = list(found["finished"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LongFocusError(
                f"--resume cannot use {path}: it is not the JSON of an earlier bench ({error}). Leave out --resume."
            ) from error
        if not same:
            raise LongFocusError(
                f"--resume cannot use {path}: it was measured with other options, versions or hardware, so that its "
                "figures would not belong to this run. Leave out --resume to measure all of it."
            )
        self.finished = finished
        self.rows = [row for row in rows if row.name in finished]
