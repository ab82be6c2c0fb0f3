"""FAISS search: indexes of the FAISS library find the keys with the largest inner product (paper section 3.1).

    Faiss       the search of one memory layer; it keeps an index per part, line and KV head, made when first needed
    exact       chooses the best of all parts and attends to them, as if it had looked at every key itself

An index only proposes pairs. Their scores are computed again from the stored keys, a few more than wanted are asked
for, so that the rounding of FAISS (float32) decides nothing. Indexes lie in RAM beside the pairs, as float32 unless the
factory string says otherwise.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from longfocus.core.attention import Partial, nothing
from longfocus.core.blocked import exact_dtype
from longfocus.memory.audit import Audit
from longfocus.memory.base import Hits, Part
from longfocus.memory.dense import dense
from longfocus.memory.exact import exact
from longfocus.memory.faiss_index import FLAT, Index, library, new_index
from longfocus.memory.quantized import Scales
from longfocus.memory.writes import Writes

SHORTEST = 4096
"""Pairs that are not worth an index."""
TAIL_SHARE = 4
"""New pairs enter an index when they are more than one so many times as many; until then all of them are looked at."""
DENSE_SHARE = 0.25
"""Where a wider search would choose more of the memory than this, it attends to all."""
_MARGIN = 8
# Indexes over different lengths of one part that are kept, as forks need them.
_KEPT = 4


class Faiss:
    """Attention over the `top_k` best keys of every query and query head that FAISS indexes find.

    `index` is a FAISS factory string: "Flat" finds the best ones without fail, "HNSW32", "IVF1024,Flat",
    "IVF256,SQ8" and others look at few keys and may miss some. With `retain=None` the k best are the answer, however
    little of the attention on the memory they hold, as in the paper; `audit.report()` says how much. With a number the
    audit holds the search to it: where the k found keep less, it asks for twice as many and looks twice as far
    (nprobe, efSearch), in the end it attends to everything. One object serves one memory layer.
    Raises LongFocusError if faiss is not installed, or (when it is first called) does not know the index.
    """

    def __init__(self, top_k: int = 128, index: str = FLAT, retain: float | None = None) -> None:
        library()
        self.top_k, self.index = top_k, index
        self.audit = Audit(0.0 if retain is None else retain)
        self._kept = WeakIdKeyDictionary()
        self._is_known = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Faiss":
        """Indexes belong to pairs: the copy, of whatever pairs, makes its own."""
        made = Faiss(self.top_k, self.index)
        made.audit = deepcopy(self.audit, memo)
        return made

    def __call__(
        self,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence[Part],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial:
        if not self._is_known:
            new_index(self.index, query.shape[3])
            self._is_known = True
        parts = [part for part in parts if len(part)]
        if not parts:
            return nothing(query)

        def search(query: Tensor) -> Partial:
            width = self.audit.width.least
            top_k = self.top_k * width
            if width > 1 and top_k > DENSE_SHARE * sum(map(len, parts)):
                return dense(query, parts, scale=scale, softcap=softcap)
            found = [some for part in parts for some in self._indexed(part, width)]
            return exact(query, found, scale=scale, softcap=softcap, top_k=top_k)

        def everything(query: Tensor) -> Partial:
            return dense(query, parts, scale=scale, softcap=softcap)

        found = search(query)
        if found.output.requires_grad:
            return found
        return self.audit.check(query, found, search, everything)

    def _indexed(self, part: Part, width: int) -> list[Part]:
        """The same pairs as a part with indexes, and what they do not hold yet."""
        if len(part) < SHORTEST or part.key.requires_grad or part.value.requires_grad:
            return [part]
        indexes = self._indexes(part)
        length = indexes.length
        front, rest = _cut(part, 0, length), _cut(part, length, len(part))
        own = {field.name: getattr(front, field.name) for field in fields(front)}
        found = _IndexedPart(**own, indexes=indexes, width=width)
        return [found, rest] if len(rest) else [found]

    def _indexes(self, part: Part) -> "_Indexes":
        """Indexes over all pairs of the part, or all but the latest."""
        # pairs that nobody writes to are known by their tensor
        owner = part.key if part.writes is None else part.writes
        known = [own for own in self._kept.get(owner, []) if own.is_sound(part.writes)]
        # a fork, or what an undone append has left, may be shorter than what is indexed
        best = max(
            (own for own in known if own.length <= len(part)),
            key=lambda own: own.length,
            default=None,
        )
        if best is None:
            best = _Indexes(self.index, part)
            known.append(best)
        if TAIL_SHARE * (len(part) - best.length) > best.length:
            best.length = len(part)
        self._kept[owner] = known[-_KEPT:]
        return best


class _Indexes:
    """Indexes over the first `length` pairs of a part, by line and KV head; each is made when it is first asked."""

    def __init__(self, factory: str, part: Part) -> None:
        self.factory, self.length = factory, len(part)
        self._seen = 0 if part.writes is None else len(part.writes.over)
        self._made: dict[tuple[int, int], Index] = {}

    def is_sound(self, writes: Writes | None) -> bool:
        """Whether no pair was written over since."""
        # not kept here: indexes live no longer than what they belong to
        later = [] if writes is None else writes.over[self._seen :]
        self._seen += len(later)
        return all(start >= self.length for start in later)

    def of(self, part: Part, line: int, kv_head: int) -> Index:
        index = self._made.setdefault((line, kv_head), Index(self.factory))
        index.cover(part, line, kv_head)
        return index


@dataclass(frozen=True)
class _IndexedPart(Part):
    """A part whose best pairs are found by indexes over all of it."""

    indexes: _Indexes = field(kw_only=True)
    width: int = field(kw_only=True)

    @torch.no_grad()
    def search(
        self, query: Float[Tensor, "batch heads query dim"], k: int, *, scale: float
    ) -> Hits:
        """The k best of the pairs that the indexes propose; scores are those of the stored keys."""
        self.verify()
        batch, heads, queries, dim = query.shape
        groups = heads // self.key.shape[1]
        k = min(k, len(self))
        wide = query.to(exact_dtype(query)) * scale
        scores = wide.new_empty(batch, heads, queries, k)
        places = torch.empty_like(scores, dtype=torch.long)
        for line in sorted({self.line_of(row) for row in range(batch)}):
            rows = [row for row in range(batch) if self.line_of(row) == line]
            for kv_head in range(self.key.shape[1]):
                own = slice(kv_head * groups, (kv_head + 1) * groups)
                best = self._best(wide[rows, own].reshape(-1, dim), k, line, kv_head)
                for into, found in zip((scores, places), best, strict=True):
                    into[rows, own] = found.view(len(rows), groups, queries, k)
        return Hits(scores, places)

    def _best(self, query: Tensor, k: int, line: int, kv_head: int) -> tuple[Tensor, Tensor]:
        """Scores and places of the best k pairs for queries `[queries, dim]`, already scaled."""
        index = self.indexes.of(self, line, kv_head)
        found = index.search(query, min(k + _MARGIN, len(self)), self.width).to(query.device)
        places = found.clamp(min=0)
        keys = self.key[line, kv_head][places].to(query.dtype)
        if self.scales is not None:
            keys *= self.scales.key[line, kv_head][places, None].to(query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            scores = (keys @ query[..., None])[..., 0]
        best = scores.masked_fill_(found < 0, -torch.inf).topk(k, dim=-1)
        return best.values, places.gather(1, best.indices)


def _cut(part: Part, start: int, stop: int) -> Part:
    """Pairs [start, stop) of all lines."""
    own = slice(start, stop)
    return replace(
        part,
        key=part.key[:, :, own],
        value=part.value[:, :, own],
        valid=None if part.valid is None else part.valid[:, own],
        scales=None if part.scales is None else Scales(*(s[:, :, own] for s in part.scales)),
        clusters=None,
    )
