"""The choices that an answer's page makes over all its documents: what is marked, listed, shown, and left out."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from longfocus.inference.page.heat import (
    HeatedText,
    IntArray,
    Passage,
    Stretch,
    heated,
    hottest,
    passages,
    stretches,
)
from longfocus.inference.page.input import AnswerPage, AnswerToken, PageDocument

COLOURED = LOOKED = 1200
"""Places that are marked for their heat, and because a token of the answer looked at them, at most."""
LOOKED_PER_TOKEN = 8
# One entry of a trace is one memory token; an input that names more is marked at its beginning.
PLACES_PER_LOOK = 16


class Look(NamedTuple):
    """What a token of the answer looked at, as marks."""

    document: int
    marks: range
    weight: float


@dataclass(frozen=True)
class DocumentView:
    """One document, cut and marked."""

    index: int
    name: str
    heated: HeatedText
    tokens: int
    weight: float
    """Share of the attention that fell on the document."""
    marks: IntArray
    passages: list[Passage]
    stretches: list[Stretch]
    kept: frozenset[Stretch]
    """The stretches whose text is in the page."""


@dataclass(frozen=True)
class PageView:
    """The documents, most attention first, and the looks of every token of the answer."""

    documents: list[DocumentView]
    looks: list[list[Look]]
    coloured: int
    """Places that have a colour."""
    coloured_weight: float
    """Share of the attention that fell on these."""

    @cached_property
    def weight(self) -> float:
        """Share of the attention that fell on the documents."""
        return sum(document.weight for document in self.documents)

    @cached_property
    def most(self) -> float:
        """Attention of the hottest place, the top of the colour scale."""
        return max((d.heated.heat.max(initial=0.0) for d in self.documents), default=0.0)

    @cached_property
    def of(self) -> dict[int, DocumentView]:
        """The documents by their place in the input."""
        return {document.index: document for document in self.documents}

    @cached_property
    def passages(self) -> list[tuple[DocumentView, Passage]]:
        """Most attention first."""
        found = [
            (document, passage) for document in self.documents for passage in document.passages
        ]
        return sorted(found, key=lambda one: -one[1].weight)


def view(page: AnswerPage, max_text_characters: int) -> PageView:
    """Choose; the looks of the answer get their marks before the heat does its own."""
    texts = [_heated(document) for document in page.documents]
    looks, looked = _looks(page.answer_tokens, texts)
    hot = hottest(texts, COLOURED)
    marks = [np.union1d(one, sorted(looked[d])).astype(np.int64) for d, one in enumerate(hot)]
    found = [passages(text, one) for text, one in zip(texts, marks, strict=True)]
    cuts = [list(stretches(text, one)) for text, one in zip(texts, found, strict=True)]
    weights = [float(text.heat.sum()) for text in texts]
    order = sorted(range(len(texts)), key=lambda d: -weights[d])
    kept = _kept(cuts, order, max_text_characters)
    documents = [
        DocumentView(
            index=d,
            name=page.documents[d].name,
            heated=texts[d],
            tokens=len(page.documents[d].heat),
            weight=weights[d],
            marks=marks[d],
            passages=found[d],
            stretches=cuts[d],
            kept=frozenset(kept[d]),
        )
        for d in order
    ]
    coloured = [text.heat[one] for text, one in zip(texts, hot, strict=True)]
    return PageView(
        documents, looks, sum(map(len, coloured)), sum(float(one.sum()) for one in coloured)
    )


def _heated(document: PageDocument) -> HeatedText:
    starts, ends = document.starts.astype(np.int64), document.ends.astype(np.int64)
    return heated(document.text, starts, ends, document.heat.astype(np.float64))


def _looks(
    tokens: Sequence[AnswerToken], texts: Sequence[HeatedText]
) -> tuple[list[list[Look]], dict[int, set[int]]]:
    """Per token its looks, heaviest first, and per document the places that they need marked.

    Where there are too many, every token's heaviest goes first, then every token's second.
    """
    wanted = [_heaviest(token, texts) for token in tokens]
    kept: list[list[Look]] = [[] for _ in tokens]
    marked: dict[int, set[int]] = defaultdict(set)
    left = LOOKED
    for rank in range(LOOKED_PER_TOKEN):
        for token, looks in enumerate(wanted):
            if rank < len(looks):
                look = looks[rank]
                new = set(look.marks) - marked[look.document]
                if len(new) <= left:
                    left -= len(new)
                    marked[look.document] |= new
                    kept[token].append(look)
    return kept, marked


def _heaviest(token: AnswerToken, texts: Sequence[HeatedText]) -> list[Look]:
    """What a token looked at; neighbours, and the same place named twice as by two layers, count together."""
    looks: list[Look] = []
    for looked in sorted(token.looked, key=lambda looked: (looked.document, looked.start)):
        marks = texts[looked.document].places(looked.start, looked.end)[:PLACES_PER_LOOK]
        if not marks:
            continue
        before = looks[-1] if looks else None
        if before and before.document == looked.document and marks.start <= before.marks.stop:
            looks.pop()
            marks = range(before.marks.start, max(marks.stop, before.marks.stop))
            looks.append(Look(looked.document, marks, before.weight + looked.weight))
        else:
            looks.append(Look(looked.document, marks, looked.weight))
    return sorted(looks, key=lambda look: -look.weight)


def _kept(
    cuts: Sequence[Sequence[Stretch]], order: Sequence[int], max_text_characters: int
) -> list[set[Stretch]]:
    """The stretches whose text is in the page: all that are shown, and hidden ones while there is room."""
    kept = [{cut for cut in document if cut.is_shown} for document in cuts]
    used = sum(cut.end - cut.start for document in kept for cut in document)
    for d in order:
        for cut in cuts[d]:
            if not cut.is_shown and used + cut.end - cut.start <= max_text_characters:
                used += cut.end - cut.start
                kept[d].add(cut)
    return kept
