"""Which memory keys are retrieved (the paper's inspection of keys): the windows behind a text look back into it.

For every token of these windows and every memory layer: the key with most attention, its kNN score (its share of the
attention that falls on the memory) and its focus score (its share among the 64 keys around it), both averaged over
heads. Counted is how often that key is of the same token, of the same word, and followed by the token that comes next.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import (
    Cell,
    Experiment,
    Record,
    Row,
    Settings,
    refuse_unreadable,
)
from longfocus.evaluation.intervals import share

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(Settings):
    """Which text is read, and how many of its tokens look back."""

    tokens: tuple[str, ...] = ("16K",)
    """Tokens of the text in memory, such as 16K 64K; 1K is 1024 tokens."""
    queries: int = 256
    """Tokens behind it that look into the memory, in windows of their own."""
    file: Path | None = None
    """Read this text instead of the standard library's source code; it must be longer than all that is read."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise LongFocusError(f"--queries must be at least 1. Got {self.queries}.")
        refuse_unreadable(self.file)


def records(subject: "Subject", settings: RetrievalSettings, cell: Cell) -> Iterator[Record]:
    """One for every token that looks, and memory layer."""
    from longfocus.evaluation.retrieved import Text, looks

    subject.refuse_one_stream()
    text = Text(subject, settings.file, cell["seed"], cell["tokens"] + settings.queries)
    with subject.session() as session:
        for number, part in enumerate(text.parts(cell["tokens"])):
            subject.read(session, part, str(number))
        behind = text.behind(settings.queries)
        with subject.answering():
            yield from looks(subject, session, behind, settings.queries)


def row(records: Sequence[Record]) -> Row:
    words = [own for own in records if own["is_in_word"]]
    # the layers of a query find alike: its interval is over queries
    of_query: dict[int, list[bool]] = defaultdict(list)
    for own in records:
        of_query[own["query"]].append(own["is_same_token"])
    by_chance = (own["same_token_by_chance"] for own in records)
    return {
        "knn_score": fmean(own["knn_score"] for own in records),
        "focus_score": fmean(own["focus_score"] for own in records),
        **share(map(fmean, of_query.values()), "same_token"),
        "same_token_by_chance": fmean(by_chance),
        "same_word": share(own["is_same_word"] for own in words)["accuracy"],
        "next_token": share(own["is_next_token"] for own in records)["accuracy"],
        "queries": len(of_query),
    }


EXPERIMENT = Experiment(settings=RetrievalSettings, records=records, row=row)
