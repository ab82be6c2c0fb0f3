"""What `Session.ask` gives back: the text, and where the model looked while it wrote it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longfocus.hf.trace import Looked
from longfocus.memory.document import DocumentMemory


@dataclass(frozen=True)
class Span:
    """Where in a document the model looked."""

    document: str
    start: int
    """First character of the source."""
    end: int
    """Past the last character."""
    line: int
    """Line of the first character, from 1."""
    text: str
    weight: float
    """Share of the attention of the memory layers, window included, averaged over heads and layers."""


@dataclass(frozen=True)
class Answer:
    """What the model answered."""

    text: str
    token_ids: tuple[int, ...]
    looked: tuple[tuple[Span, ...], ...] = ()
    """For every generated token the document entries with most attention, heaviest first (`ask(trace=)`)."""

    @property
    def sources(self) -> tuple[Span, ...]:
        """The entries of all tokens together, with their mean weight per token, heaviest first."""
        total: dict[tuple[str, int, int], tuple[Span, float]] = {}
        for span in (span for token in self.looked for span in token):
            place = (span.document, span.start, span.end)
            total[place] = (span, total.get(place, (span, 0.0))[1] + span.weight / len(self.looked))
        merged = [
            Span(s.document, s.start, s.end, s.line, s.text, weight) for s, weight in total.values()
        ]
        return tuple(sorted(merged, key=lambda span: -span.weight))


def spans(
    looked: Iterable[Looked], documents: Sequence[DocumentMemory], layers: int
) -> tuple[Span, ...]:
    """The memory entries that lie in `documents`, heaviest first; `layers` memory layers share the attention."""
    found = []
    for entry in looked:
        # parts behind the documents are the conversation's own
        if entry.part < len(documents):
            document = documents[entry.part]
            start = end = entry.position
            line, text = 0, ""
            if document.offsets is not None:
                (start, end), line = document.span(entry.position), document.line(entry.position)
                text = (document.text or "")[start:end]
            found.append(Span(document.name, start, end, line, text, entry.weight / layers))
    return tuple(sorted(found, key=lambda span: -span.weight))


def until_end(ids: list[int], ends: int | Sequence[int] | None) -> list[int]:
    """Generated tokens up to and including the first that ends a text; behind it stands padding."""
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    last = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: last + 1]


def batches(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows that may be answered together: all of them if the longest has room in the window, else those of equal
    length."""
    if max(lengths) <= room:
        return [list(range(len(lengths)))]
    together = defaultdict(list)
    for row, length in enumerate(lengths):
        together[length].append(row)
    return list(together.values())
