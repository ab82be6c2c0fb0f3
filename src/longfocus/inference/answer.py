"""What `Session.ask` and `chat` give back: the text, and where the model looked while it wrote it.

Nothing is recorded while an answer is generated. Whoever asks for `sources` has the model read the answer once more, in
one pass, and gets the exact weights of every memory entry.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from longfocus.hf.cache import FocusCache
from longfocus.hf.layers import evaluating
from longfocus.hf.trace import Looked, Trace
from longfocus.memory.document import DocumentMemory

# Entries per token and memory layer that are named.
TOP = 8
# Hot tokens at most so far apart belong to one place.
GAP = 16
MOST_SOURCES = 10
# A place with less than this share of the attention of the first one is not named (benchmarks/cited_sources.py).
LEAST_SHARE = 0.2


@dataclass(frozen=True)
class Span:
    """Where in a document the model looked."""

    document: str
    start: int
    """First character of the source; first token, if it was read from token ids."""
    end: int
    """Past the last character."""
    line: int
    """Line of the first character, from 1; 0 if it was read from token ids."""
    text: str
    weight: float
    """Share of the attention of the memory layers, window included, averaged over heads and layers."""
    part: str | None = None
    """The file, or other part, of a document that was put together from several."""


@dataclass(frozen=True)
class Retrieved(Span):
    """One memory entry, and how a memory layer saw it for one token."""

    number: int = 0
    """Place of the document in `Answer.documents`."""
    layer: int = 0
    knn_score: float = 0.0
    """Share of the attention that falls on the memory, averaged over heads (paper, inspection of retrieved keys)."""
    focus_score: float = 0.0
    """Its share among the 64 entries around it, averaged over heads."""


@dataclass(frozen=True)
class Asked:
    """What an answer was the answer to: enough to look at it again."""

    model: Any
    start: Callable[[], FocusCache]
    """The memory and the conversation as they were before."""
    prompt: tuple[int, ...]
    """Token ids of the conversation up to the answer."""
    settings: dict[str, Any]
    """For the forward pass: `last_context_length`."""

    @torch.no_grad()
    def look_again(self, answer: Sequence[int]) -> tuple[Trace, tuple[DocumentMemory, ...]]:
        """Where the model looked for every token of the answer."""
        cache = self.start()
        trace = Trace(TOP, last=1, ends_pass=True)
        new = list(self.prompt[cache.get_seq_length() :])
        self._forward(cache, new, trace, **self.settings)
        trace.last = None
        # the last token was generated, and never read
        waiting = list(answer[:-1])
        while waiting:
            # tokens that leave no window at other moments than one by one
            room = cache.config.window - cache.local if cache.config.split == "when_needed" else 1
            now, waiting = waiting[: max(room, 1)], waiting[max(room, 1) :]
            self._forward(cache, now, trace)
        return trace, cache.documents

    def _forward(self, cache: FocusCache, ids: list[int], trace: Trace, **settings: Any) -> None:
        given = torch.tensor([ids], device=self.model.device)
        with evaluating(self.model):
            self.model(
                given, past_key_values=cache, focus_trace=trace, logits_to_keep=1, **settings
            )


@dataclass(frozen=True)
class Answer:
    """What the model answered."""

    text: str
    token_ids: tuple[int, ...]
    asked: Asked | None = field(default=None, repr=False, compare=False)

    @property
    def sources(self) -> tuple[Span, ...]:
        """The places in documents with most attention while the answer was written, heaviest first.

        Neighbouring tokens are one place; its weight is the mean over the tokens of the answer.
        """
        if self._looks is None:
            return ()
        trace, documents = self._looks
        hot: dict[int, set[int]] = defaultdict(set)
        for looked in (looked for query in trace.queries for looked in query):
            if looked.part < len(documents):
                hot[looked.part].add(looked.position)
        found = [
            _place(documents[part], first, last, float(heat[first : last + 1].sum()))
            for part, positions in hot.items()
            for heat in [self.heat[part]]
            for first, last in _runs(sorted(positions))
        ]
        found.sort(key=lambda span: -span.weight)
        return tuple(s for s in found[:MOST_SOURCES] if s.weight >= LEAST_SHARE * found[0].weight)

    @property
    def looked(self) -> tuple[tuple[Retrieved, ...], ...]:
        """For every token of the answer the memory entries in documents with most attention, heaviest first."""
        if self._looks is None:
            return ()
        trace, documents = self._looks
        layers = self._layers
        return tuple(
            tuple(
                sorted(
                    (
                        _retrieved(documents[looked.part], looked, layers)
                        for looked in query
                        if looked.part < len(documents)
                    ),
                    key=lambda span: -span.weight,
                )
            )
            for query in trace.queries
        )

    @cached_property
    def heat(self) -> tuple[Tensor, ...]:
        """For every document the attention that each of its tokens received, `[tokens]`.

        Averaged over heads, memory layers and tokens of the answer, so that all documents, the conversation and the
        window together have 1.
        """
        if self._looks is None:
            return ()
        trace, documents = self._looks
        shared = self._layers * max(len(self.token_ids), 1)
        return tuple(
            trace.heat.get(part, torch.zeros(document.tokens)) / shared
            for part, document in enumerate(documents)
        )

    @property
    def documents(self) -> tuple[DocumentMemory, ...]:
        """The documents that the model saw, in the order of `heat`, which is not that of the session."""
        return () if self._looks is None else self._looks[1]

    @cached_property
    def _looks(self) -> tuple[Trace, tuple[DocumentMemory, ...]] | None:
        if self.asked is None or not self.token_ids:
            return None
        return self.asked.look_again(self.token_ids)

    @property
    def _layers(self) -> int:
        assert self.asked is not None
        return len(self.asked.model.focus.config.memory_layers)


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of positions that lie near each other."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position - runs[-1][1] <= GAP:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs


def _place(document: DocumentMemory, first: int, last: int, weight: float) -> Span:
    """The characters from the token `first` to the token `last`."""
    if document.offsets is None:
        return Span(document.name, first, last + 1, 0, "", weight)
    start, end = document.span(first)[0], document.span(last)[1]
    part = document.part_of(start)
    return Span(
        document.name,
        start,
        end,
        document.line_of(start),
        (document.text or "")[start:end],
        weight,
        None if part is None else part.name,
    )


def _retrieved(document: DocumentMemory, looked: Looked, layers: int) -> Retrieved:
    span = _place(document, looked.position, looked.position, looked.weight / layers)
    return Retrieved(
        **vars(span),
        number=looked.part,
        layer=looked.layer,
        knn_score=looked.knn_score,
        focus_score=looked.focus_score,
    )


def until_end(ids: list[int], ends: int | Sequence[int] | None) -> list[int]:
    """Generated tokens up to and including the first that ends a text; behind it stands padding."""
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    last = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: last + 1]


def ending(ids: Sequence[int], ends: int | Sequence[int] | None) -> int | None:
    """The last token, if it ends a text."""
    return ids[-1] if ids and len(until_end([ids[-1], -1], ends)) == 1 else None


def batches(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows that may be answered together: all of them if the longest has room in the window, else those of equal
    length."""
    if max(lengths) <= room:
        return [list(range(len(lengths)))]
    together = defaultdict(list)
    for row, length in enumerate(lengths):
        together[length].append(row)
    return list(together.values())
