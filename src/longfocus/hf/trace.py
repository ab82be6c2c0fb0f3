"""Where memory layers looked: how much of the attention every memory entry received, exactly.

The weight of an entry is its share of the one softmax over window and memory: exp(score - lse of the union), averaged
over heads and memory layers. What is recorded is one conversation: a batch of one row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory import Part
from longfocus.memory.exact import best_of_all
from longfocus.memory.sorting import in_order

# Weights held at a time: queries x memory entries, and heads x queries x memory entries of one block.
_HELD_ELEMENTS = 2**25
_BLOCK_ELEMENTS = 2**22
NEIGHBOURS = 64
"""Tokens around an entry that its focus score compares it with (paper, inspection of retrieved keys)."""


class Looked(NamedTuple):
    """One memory entry that a query looked at."""

    layer: int
    part: int
    """Which of the layer's parts; documents come first, in the order of the cache."""
    position: int
    """Token of that part."""
    weight: float
    """Share of the layer's attention, window included, averaged over its heads."""
    knn_score: float
    """Share of the attention that falls on the memory (of the retrieved keys, where only the best are), averaged
    over heads."""
    focus_score: float
    """Its share of attention among the 64 entries around it, averaged over heads."""


class Trace:
    """Collects where the last `last` tokens of a forward pass looked (None: all of them).

    `queries`: for every recorded token, the `top` entries of every memory layer, heaviest first within a layer.
    `heat`: for every part, the weights of its entries, summed over recorded tokens and memory layers.
    With `ends_pass` a pass ends where the last memory layer has looked with the recorded tokens, and gives no logits:
    exact, and many times faster where the prompt is long.
    """

    def __init__(self, top: int = 8, last: int | None = 1, *, ends_pass: bool = False) -> None:
        self.top, self.last, self.ends_pass = top, last, ends_pass
        self.queries: list[list[Looked]] = []
        self.heat: dict[int, Tensor] = {}
        self._first_layer: int | None = None

    def begin(self, layer: int, rows: int, queries: int) -> None:
        """A memory layer begins to look with so many recorded tokens; the first one of a pass begins a new record."""
        if rows != 1:
            raise LongFocusError(
                f"A trace records one conversation. Got a batch of {rows} rows. Trace them one by one."
            )
        if self._first_layer in (None, layer):
            self._first_layer = layer
            self.queries += [[] for _ in range(queries)]

    def look(
        self,
        layer: int,
        query: Float[Tensor, "1 heads query dim"],
        parts: Sequence[Part],
        total: Float[Tensor, "1 heads query"],
        *,
        scale: float,
        softcap: float | None = None,
        top_k: int | None = None,
    ) -> None:
        """Record where the queries looked.

        `total` is the log of what exp(score) is divided by to give a weight. With `top_k` only so many keys of all
        parts together were attended.
        """
        entries = max(sum(map(len, parts)), 1)
        first = len(self.queries) - query.shape[2]
        for start in range(0, query.shape[2], max(1, _HELD_ELEMENTS // entries)):
            own = slice(start, start + max(1, _HELD_ELEMENTS // entries))
            looks = _Looks(query[:, :, own], parts, total[:, :, own], scale, softcap)
            weights = looks.of_all() if top_k is None else looks.of_best(top_k)
            for part, found in enumerate(weights):
                warmth = found.sum(0)
                known = self.heat.get(part)
                # a conversation's own memory grows
                if known is None or len(known) < len(warmth):
                    warmth[: 0 if known is None else len(known)] += (
                        known if known is not None else 0
                    )
                    self.heat[part] = warmth
                else:
                    known[: len(warmth)] += warmth
            for place, looked in enumerate(looks.heaviest(weights, self.top, layer)):
                self.queries[first + start + place] += looked


class _Looks:
    """Some queries of one memory layer, and what they look into."""

    def __init__(
        self,
        query: Tensor,
        parts: Sequence[Part],
        total: Tensor,
        scale: float,
        softcap: float | None,
    ) -> None:
        self.query, self.parts, self.total = query, parts, total
        self.scale, self.softcap = scale, softcap
        self.mass = total.new_zeros(total.shape)
        """Attention of every head that falls on the memory: (1, heads, query)."""
        self.chosen: list[Tensor] | None = None
        """Of every part the entries that each head attended to, others -1; None if it was all."""

    def of_all(self) -> list[Float[Tensor, "query pairs"]]:
        """Weights of every entry of every part, averaged over heads."""
        found = []
        heads = self.query.shape[1]
        for part in self.parts:
            block = max(1, min(part.step(), _BLOCK_ELEMENTS // (heads * self.query.shape[2])))
            # an approximate search has not looked at all of it
            part.verify()
            weights = self.total.new_zeros(self.query.shape[2], len(part))
            for start in range(0, len(part), block):
                stop = min(start + block, len(part))
                shares = (self._scores(part, start, stop) - self.total[..., None]).exp()
                self.mass += shares.sum(-1)
                if part.clusters is None:
                    weights[:, start:stop] = shares.mean(1)[0]
                    continue
                # sorted pairs stand elsewhere for every head
                for head, tokens in enumerate(self._tokens(part, slice(start, stop))):
                    weights.index_add_(1, tokens, shares[0, head], alpha=1 / heads)
            found.append(weights)
        return found

    def of_best(self, top_k: int) -> list[Float[Tensor, "query pairs"]]:
        """The same where only the best keys of all parts together were attended."""
        hits = [part.search(self.query, top_k, scale=self.scale) for part in self.parts]
        found, chosen = [], []
        for part, own, is_chosen in zip(self.parts, hits, best_of_all(hits, top_k), strict=True):
            shares = (self._capped(own.scores.to(self.total)) - self.total[..., None]).exp()
            shares = shares * is_chosen
            positions = own.positions[0]
            if part.clusters is not None:
                tokens = torch.stack(self._tokens(part, slice(None)))
                positions = tokens.gather(1, positions.flatten(1)).view_as(positions)
            chosen.append(positions.masked_fill(~is_chosen[0], -1))
            self.mass += shares.sum(-1)
            weights = self.total.new_zeros(self.query.shape[2], len(part))
            for head in range(self.query.shape[1]):
                weights.scatter_add_(1, positions[head], shares[0, head])
            found.append(weights / self.query.shape[1])
        self.chosen = chosen
        return found

    def heaviest(self, weights: Sequence[Tensor], top: int, layer: int) -> list[list[Looked]]:
        """For every query its heaviest entries of all parts."""
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] + len(part))
        together = torch.cat(list(weights), 1) if len(weights) > 1 else weights[0]
        best = together.topk(min(top, together.shape[1]), dim=1)
        found = []
        for place in range(len(together)):
            entries = []
            for weight, index in zip(*(t[place].tolist() for t in best), strict=True):
                if weight > 0:
                    part = sum(start <= index for start in starts[1:])
                    position = index - starts[part]
                    scores = self._compared(place, part, position)
                    entries.append(Looked(layer, part, position, weight, *scores))
            found.append(entries)
        return found

    def _compared(self, place: int, number: int, position: int) -> tuple[float, float]:
        """kNN score and focus score of one entry for one query."""
        part = self.parts[number]
        first = max(0, min(position - NEIGHBOURS // 2, len(part) - NEIGHBOURS))
        stop = min(first + NEIGHBOURS, len(part))
        query = slice(place, place + 1)
        if part.clusters is None:
            around = self._scores(part, first, stop, query)[0, :, 0]
        else:
            beside = in_order(part, slice(first, stop))
            around = self._scores(beside, 0, len(beside), query)[0, :, 0]
        own = around[:, position - first]
        knn = (own - self.total[0, :, place]).exp() / self.mass[0, :, place]
        if self.chosen is not None:
            knn = knn * (self.chosen[number][:, place] == position).any(-1)
        return float(knn.mean()), float(around.softmax(-1)[:, position - first].mean())

    def _tokens(self, part: Part, own: slice) -> list[Int[Tensor, " pairs"]]:
        """Where entries stood before they were sorted, for every query head."""
        assert part.clusters is not None
        order = part.clusters.order[part.line_of(0), :, own].long()
        return list(order.repeat_interleave(self.query.shape[1] // len(order), 0))

    def _scores(self, part: Part, start: int, stop: int, queries: slice = slice(None)) -> Tensor:
        """Scores of entries [start, stop): (1, heads, query, entries); padding has -inf."""
        query = self.query[:, :, queries]
        (line,) = part.rows or (0,)
        kv_heads = part.key.shape[1]
        keys = part.keys(start, stop, self.total.dtype)[line]
        folded = query[0].to(self.total.dtype).unflatten(0, (kv_heads, -1)).flatten(1, 2)
        scores = (folded @ keys.mT).view(1, *query.shape[1:3], -1) * self.scale
        scores = self._capped(scores)
        if part.valid is not None:
            scores = scores.masked_fill(~part.valid[line, start:stop], -torch.inf)
        return scores

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)
