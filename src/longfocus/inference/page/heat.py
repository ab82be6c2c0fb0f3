"""Which characters of a document an answer's page marks, shows and hides: numbers only, no HTML.

    memory tokens -> places      tokens that share characters (the bytes of one emoji) count together
    places -> marks              the hottest, and those that a token of the answer looked at
    marks -> passages            marks close to each other, with the attention of all that lies between
    passages -> stretches        the text cut into shown (a passage with its surroundings) and hidden

Places are counted in the order of the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LEVELS = 7
"""Steps of the colour scale, each twice the one below."""

# Lines and characters shown around a passage; the characters bound lines of a megabyte.
LINES_AROUND, CHARACTERS_AROUND = 2, 600
# Marks as close as this are one passage.
LINES_WITHIN, CHARACTERS_WITHIN = 2, 200
# Less than this is not worth hiding.
HIDDEN_LINES, HIDDEN_CHARACTERS = 5, 500


class Passage(NamedTuple):
    """Neighbouring marks of one document."""

    start: int
    end: int
    mark: int
    """Its hottest place."""
    weight: float
    """Attention of all its characters, also of those between the marks."""


class Stretch(NamedTuple):
    """A part of the text that is shown, or hidden until it is asked for."""

    start: int
    end: int
    is_shown: bool


@dataclass(frozen=True)
class HeatedText:
    """A text, and the attention that each place of it received."""

    text: str
    begins: IntArray
    """`[places]`, ascending; places do not overlap."""
    ends: IntArray
    heat: FloatArray
    """`[places]`"""

    @cached_property
    def lines(self) -> IntArray:
        """First character of every line; a text that ends with a line end has no empty last line."""
        characters = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        behind = np.flatnonzero(characters == ord("\n")) + 1
        return np.concatenate([[0], behind[behind < len(self.text)]])

    @cached_property
    def _heat_before(self) -> FloatArray:
        return np.concatenate([[0.0], np.cumsum(self.heat)])

    def line(self, character: int) -> int:
        """Line of a character, from 1."""
        return int(np.searchsorted(self.lines, character, "right"))

    def is_line_start(self, character: int) -> bool:
        """Whether a line begins here, or the text ends."""
        return character == len(self.text) or int(self.lines[self.line(character) - 1]) == character

    def weight(self, start: int, end: int) -> float:
        """Attention of the places that begin at the characters from `start` to before `end`."""
        first, last = np.searchsorted(self.begins, [start, end])
        return float(self._heat_before[last] - self._heat_before[first])

    def places(self, start: int, end: int) -> range:
        """The places that share characters with `start` to before `end`."""
        first = np.searchsorted(self.ends, start, "right")
        return range(int(first), int(np.searchsorted(self.begins, max(end, start + 1))))

    def around(self, start: int, end: int) -> tuple[int, int]:
        """First and past-the-end character of a passage with its surroundings."""
        first = max(self.line(start) - LINES_AROUND, 1)
        last = self.line(max(end - 1, start)) + LINES_AROUND
        begin = int(self.lines[first - 1])
        stop = int(self.lines[last]) if last < len(self.lines) else len(self.text)
        return max(begin, start - CHARACTERS_AROUND), min(stop, end + CHARACTERS_AROUND)

    def strip(self, bins: int) -> FloatArray:
        """Attention of the text cut into `bins` parts of equal length."""
        part = self.begins * bins // max(len(self.text), 1)
        return np.bincount(part, self.heat, bins).astype(np.float64)


def heated(text: str, starts: IntArray, ends: IntArray, heat: FloatArray) -> HeatedText:
    """The places of memory tokens `[tokens]`.

    A character belongs to the first token that covers it; a token left without characters counts to the place before.
    """
    order = np.lexsort((ends, starts))
    starts, ends, heat = starts[order], ends[order], heat[order]
    covered = np.maximum.accumulate(np.concatenate([[0], ends[:-1]])) if len(ends) else ends
    begins = np.maximum(starts, covered)
    is_place = begins < ends
    place = np.maximum(np.cumsum(is_place) - 1, 0)
    merged = np.bincount(place, heat, 1)[: int(is_place.sum())].astype(np.float64)
    return HeatedText(text, begins[is_place], ends[is_place], merged)


def levels(heat: FloatArray, most: float) -> IntArray:
    """Steps of the colour scale: LEVELS above half of `most`, one less above a quarter, ..., 0 for the rest."""
    if not most:
        return np.zeros(heat.shape, np.int64)
    halvings = np.log2(most / np.maximum(heat, most * 2.0**-LEVELS))
    return LEVELS - np.floor(halvings).astype(np.int64)


def hottest(documents: Sequence[HeatedText], limit: int) -> list[IntArray]:
    """Per document the places that have a colour.

    If they are more than `limit` in all documents, the hottest: none without all others that are as hot.
    """
    heat = np.concatenate([np.zeros(0), *(document.heat for document in documents)])
    hot = np.flatnonzero(levels(heat, heat.max(initial=0.0)))
    if len(hot) > limit:
        hot = np.flatnonzero(heat > np.partition(heat, -limit - 1)[-limit - 1])
    sizes = [len(document.heat) for document in documents]
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    cuts = np.searchsorted(hot, bounds)
    return [hot[cuts[d] : cuts[d + 1]] - bounds[d] for d in range(len(documents))]


def passages(document: HeatedText, marks: IntArray) -> list[Passage]:
    """Marks close to each other, merged."""
    if not len(marks):
        return []
    begins, ends = document.begins[marks], document.ends[marks]
    first_line = np.searchsorted(document.lines, begins, "right")
    last_line = np.searchsorted(document.lines, ends - 1, "right")
    is_far = (begins[1:] - ends[:-1] > CHARACTERS_WITHIN) | (
        first_line[1:] - last_line[:-1] > LINES_WITHIN
    )
    groups = np.split(marks, np.flatnonzero(is_far) + 1)
    return [_passage(document, group) for group in groups]


def _passage(document: HeatedText, marks: IntArray) -> Passage:
    start, end = int(document.begins[marks[0]]), int(document.ends[marks[-1]])
    mark = int(marks[np.argmax(document.heat[marks])])
    return Passage(start, end, mark, document.weight(start, end))


def stretches(document: HeatedText, found: Sequence[Passage]) -> Iterator[Stretch]:
    """The whole text, cut into what is shown and what is hidden."""
    place = 0
    for start, end in _shown(document, found):
        if start > place:
            yield Stretch(place, start, is_shown=False)
        yield Stretch(start, end, is_shown=True)
        place = end
    if place < len(document.text):
        yield Stretch(place, len(document.text), is_shown=False)


def _shown(document: HeatedText, found: Sequence[Passage]) -> list[tuple[int, int]]:
    """Passages with their surroundings, joined where little or nothing lies between them."""
    shown: list[tuple[int, int]] = []
    for passage in found:
        start, end = document.around(passage.start, passage.end)
        before = shown[-1][1] if shown else 0
        if not _is_worth_hiding(document, before, start):
            start = shown.pop()[0] if shown else 0
        shown.append((start, end))
    if shown and not _is_worth_hiding(document, shown[-1][1], len(document.text)):
        shown.append((shown.pop()[0], len(document.text)))
    return shown


def _is_worth_hiding(document: HeatedText, start: int, end: int) -> bool:
    if end <= start:
        return False
    lines = document.line(end - 1) - document.line(start) + 1
    return lines > HIDDEN_LINES or end - start > HIDDEN_CHARACTERS
