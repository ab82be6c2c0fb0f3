"""What the paper's table of retrieved keys shows: the sharpest looks of a run of `retrieval`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Any

from longfocus.evaluation.report.runs import Run

MOST, LOOKED_THROUGH = 10, 20_000


@dataclass(frozen=True)
class Look:
    """A token, and the key that it looked at most; texts are (before, token, behind)."""

    query: tuple[str, str, str]
    key: tuple[str, str, str]
    layer: int
    knn_score: float
    focus_score: float


def looks(run: Run) -> list[Look]:
    """Those with the largest kNN scores, each token and key once."""
    found: dict[tuple[str, str], Look] = {}
    for look in islice(_all(run), LOOKED_THROUGH):
        name = (look.query[1], look.key[1])
        if name not in found or look.knn_score > found[name].knn_score:
            found[name] = look
    return nlargest(MOST, found.values(), key=lambda look: look.knn_score)


def _all(run: Run) -> Iterator[Look]:
    try:
        for record in run.records():
            if "knn_score" in record:
                yield _look(record)
    # examples are worth showing as far as they can be read; the figures come from the rows
    except (KeyError, TypeError, ValueError):
        return


def _look(record: Mapping[str, Any]) -> Look:
    (before, behind), (key_before, key_behind) = record["context"], record["retrieved_context"]
    return Look(
        (str(before), str(record["token"]), str(behind)),
        (str(key_before), str(record["retrieved"]), str(key_behind)),
        int(record["layer"]),
        float(record["knn_score"]),
        float(record["focus_score"]),
    )
