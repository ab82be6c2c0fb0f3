"""What a cell costs, what its searches kept, and whether its text was long enough: seconds, bytes, retained mass."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longfocus.inference.session import Session
    from longfocus.memory.audit import Retained

SAMPLE_SECONDS = 0.05


class Costs:
    """Of one cell."""

    def __init__(self) -> None:
        self.reading_seconds = self.answering_seconds = 0.0
        self.memory_bytes = 0
        """Of keys and values in the largest memory."""
        self.peak_anonymous_bytes: int | None = None
        self.text_repeated = 0
        """How many times a text began again that was shorter than what was to be read."""
        self.retained: list[Retained] = []

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the seconds within to `reading_seconds` or `answering_seconds`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{what}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    def note(self, session: "Session") -> None:
        """Take down what a session has used; nothing of it is kept."""
        self.memory_bytes = max(self.memory_bytes, session.nbytes)
        self.retained += session.retained.values()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watches the anonymous resident memory of the process, where the system tells it."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                self._sample()

        watcher = threading.Thread(target=watch, name="anonymous memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            self._sample()

    def _sample(self) -> None:
        now = anonymous_bytes()
        if now is not None:
            self.peak_anonymous_bytes = max(now, self.peak_anonymous_bytes or 0)

    def row(self) -> dict[str, Any]:
        """The entries of a row; what was not measured is absent."""
        row: dict[str, Any] = {}
        if queries := sum(own.queries for own in self.retained):
            # every layer and session counts by its queries; of the other two the worst is told
            row["retained_mass"] = sum(own.mean * own.queries for own in self.retained) / queries
            row["retained_mass_p10"] = min(own.p10 for own in self.retained)
            row["retained_mass_least"] = min(own.least for own in self.retained)
        if self.text_repeated:
            row["text_repeated"] = self.text_repeated
        row["reading_seconds"] = self.reading_seconds
        row["answering_seconds"] = self.answering_seconds
        row["memory_bytes"] = self.memory_bytes
        if self.peak_anonymous_bytes is not None:
            row["peak_anonymous_bytes"] = self.peak_anonymous_bytes
        return row


def anonymous_bytes() -> int | None:
    """Resident memory of this process that no file stands behind; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None
    )
