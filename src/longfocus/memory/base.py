"""What a memory layer looks into, and the contract of a search.

    Part     pairs that lie together: storage, which batch row owns which line of it, what is visible
    Search   a function over any number of parts: one Partial for the memory layer to merge with its window

A growing memory and a document give parts; a search never needs to know which. A search serves one memory layer, and
may hold what it has learned of it. To add one: something with the signature of `Search`, one line in `memory.SEARCHES`,
one line in the docs; the contract test runs over that table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from longfocus.core.attention import Partial, attend, merge, nothing, under_autocast
from longfocus.core.blocked import exact_dtype
from longfocus.core.runs import Pairs, attend_lines
from longfocus.memory.clusters import Clusters
from longfocus.memory.quantized import Scales
from longfocus.memory.trusted import PairsFile
from longfocus.memory.writes import Writes

# Components of keys turned into another number type at a time: on a CPU so few that they stay in its cache.
CONVERTED_ELEMENTS = 2**19
DEVICE_CONVERTED_ELEMENTS = 2**24
# Answers of one query to several blocks that are held at a time.
HELD_PARTIALS = 16
# Queries of one KV head that are faster in matrix tiles than in torch's fused attention.
FEW_QUERIES = 256
# Scores held at a time while searching, in elements.
SEARCH_ELEMENTS = 2**23


class Hits(NamedTuple):
    """The best keys of one part for every query and query head, best first."""

    scores: Float[Tensor, "batch heads query k"]
    """query . key * scale, before any softcap; -inf where there are fewer than k visible keys."""
    positions: Int[Tensor, "batch heads query k"]
    """Places in the part."""


@runtime_checkable
class Search(Protocol):
    """Attention of every query over (some of) the pairs of all parts."""

    def __call__(
        self,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence["Part"],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial: ...


@dataclass(frozen=True)
class Part:
    """Pairs of one memory layer that lie together and are never copied to be looked at.

    `key`, `value` are `[lines, kv_heads, pairs, dim]`, `valid` `[lines, pairs]` (None: all are real). `rows[b]` is
    the line that batch row b sees; None: every row sees line 0 (a document). Beams and the questions of a batch
    share lines. int8 pairs have `scales`. Pairs that lie in a `file` are verified before they are looked at.
    Pairs may lie sorted by `clusters`, every line and KV head in an order of its own.
    """

    key: Shaped[Tensor, "lines kv_heads pairs dim"]
    value: Shaped[Tensor, "lines kv_heads pairs dim"]
    valid: Bool[Tensor, "lines pairs"] | None = None
    rows: tuple[int, ...] | None = None
    scales: Scales | None = None
    file: PairsFile | None = None
    clusters: Clusters | None = None
    writes: Writes | None = None
    """What happens to the room that the pairs lie in; None for pairs that never change."""

    def __len__(self) -> int:
        return self.key.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, and of their scales."""
        return sum(t.nbytes for t in (self.key, self.value, *(self.scales or ())))

    def attend(
        self,
        query: Float[Tensor, "batch heads query dim"],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial:
        """Attention over all pairs of the part."""
        return Partial(*self._by_line(query, partial(_attend, scale=scale, softcap=softcap)))

    def search(
        self, query: Float[Tensor, "batch heads query dim"], k: int, *, scale: float
    ) -> Hits:
        """The k pairs with the largest inner product, per query and query head (fewer if the part is smaller)."""
        if len(self) == 0:
            empty = query.new_empty((*query.shape[:3], 0))
            return Hits(empty.to(exact_dtype(query)), empty.long())
        with torch.no_grad():
            return Hits(*self._by_line(query, partial(_best, k=min(k, len(self)), scale=scale)))

    def take(
        self, positions: Int[Tensor, "batch heads query k"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch heads query k dim"], Float[Tensor, "batch heads query k dim"]]:
        """Keys and values at the given places, for every query and query head, as numbers of type `dtype`."""
        self.verify()
        if positions.device != self.key.device:
            key, value = self.take(positions.to(self.key.device), dtype)
            return key.to(positions.device), value.to(positions.device)
        batch, heads = positions.shape[:2]
        line = (
            torch.zeros(batch, dtype=torch.long) if self.rows is None else torch.tensor(self.rows)
        )
        head = torch.arange(heads) // (heads // self.key.shape[1])
        index = (line[:, None, None, None], head[None, :, None, None], positions)
        key, value = self.key[index].to(dtype), self.value[index].to(dtype)
        if self.scales is None:
            return key, value
        by_key, by_value = (scale[index][..., None].to(dtype) for scale in self.scales)
        return key * by_key, value * by_value

    def step(self) -> int:
        """Pairs to be turned into another number type at a time."""
        on_cpu = self.key.device.type == "cpu"
        elements = CONVERTED_ELEMENTS if on_cpu else DEVICE_CONVERTED_ELEMENTS
        lines, kv_heads, _, dim = self.key.shape
        return max(1, elements // max(lines * kv_heads * dim, 1))

    def keys(
        self, start: int, stop: int, dtype: torch.dtype
    ) -> Float[Tensor, "lines kv_heads some dim"]:
        """Keys [start, stop) of all lines as numbers of type `dtype`."""
        scale = None if self.scales is None else self.scales.key
        return _numbers(self.key, scale, slice(start, stop), dtype)

    def values(
        self, start: int, stop: int, dtype: torch.dtype
    ) -> Float[Tensor, "lines kv_heads some dim"]:
        """Values [start, stop) of all lines as numbers of type `dtype`."""
        scale = None if self.scales is None else self.scales.value
        return _numbers(self.value, scale, slice(start, stop), dtype)

    def own_keys(
        self, line: int, kv_head: int, places: slice | Int[Tensor, " some"]
    ) -> Float[Tensor, "some dim"]:
        """Keys at some places of one line and KV head; int8 ones as bfloat16."""
        keys = self.key[line, kv_head][places]
        if self.scales is None:
            return keys
        scale = self.scales.key[line, kv_head][places, None]
        return keys.to(torch.bfloat16) * scale.to(torch.bfloat16)

    def pairs(self, line: int, kv_head: int) -> Pairs:
        """Keys and values of one line and KV head."""
        own = (line, kv_head)
        scales = () if self.scales is None else tuple(scale[own] for scale in self.scales)
        return Pairs(self.key[own], self.value[own], *scales)

    def run(self, line: int, kv_head: int, start: int, stop: int) -> "Part":
        """Pairs [start, stop) of one line and KV head, none of them padding, as a part of its own."""
        own = (slice(line, line + 1), slice(kv_head, kv_head + 1), slice(start, stop))
        scales = None if self.scales is None else Scales(*(s[own] for s in self.scales))
        return Part(self.key[own], self.value[own], None, None, scales)

    def to(self, device: torch.device) -> "Part":
        """The part on another device; the same object if it is there."""
        if self.key.device == device:
            return self
        self.verify()
        scales = None if self.scales is None else Scales(*(s.to(device) for s in self.scales))
        valid = None if self.valid is None else self.valid.to(device)
        clusters = None if self.clusters is None else self.clusters.to(device)
        key, value = self.key.to(device), self.value.to(device)
        return Part(key, value, valid, self.rows, scales, clusters=clusters)

    def verify(self) -> None:
        """Look for the first time: raises LongFocusError if the file of the pairs was altered."""
        if self.file is not None:
            self.file.verify()

    def line_of(self, row: int) -> int:
        """The line that a batch row sees."""
        return 0 if self.rows is None else self.rows[row]

    def _line(self, line: int) -> "Part":
        own = slice(line, line + 1)
        scales = None if self.scales is None else Scales(*(s[own] for s in self.scales))
        valid = None if self.valid is None else self.valid[own]
        return Part(self.key[own], self.value[own], valid, None, scales)

    def _by_line(
        self,
        query: Tensor,
        answer: Callable[[Tensor, "Part"], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Run `answer` once per line, with the queries of all rows that share it side by side.

        Pairs on another device are looked at there: a query is small.
        """
        if query.device != self.key.device:
            both = self._by_line(query.to(self.key.device), answer)
            return both[0].to(query.device), both[1].to(query.device)
        self.verify()
        batch = query.shape[0]
        if self.rows is not None and self.rows == tuple(range(self.key.shape[0])):
            return answer(query, self)
        owners = (0,) * batch if self.rows is None else self.rows
        found: list[tuple[Tensor, Tensor] | None] = [None] * batch
        for line in sorted(set(owners)):
            sharing = [row for row in range(batch) if owners[row] == line]
            # (rows, heads, query, dim) -> (1, heads, rows * query, dim)
            side_by_side = query[sharing].transpose(0, 1).flatten(1, 2)[None]
            both = answer(side_by_side, self._line(line))
            split = [t[0].unflatten(1, (len(sharing), -1)).transpose(0, 1) for t in both]
            for place, row in enumerate(sharing):
                found[row] = (split[0][place], split[1][place])
        first, second = zip(*(pair for pair in found if pair is not None), strict=True)
        return torch.stack(first), torch.stack(second)


def _numbers(stored: Tensor, scale: Tensor | None, own: slice, dtype: torch.dtype) -> Tensor:
    numbers = stored[:, :, own].to(dtype)
    return numbers if scale is None else numbers * scale[:, :, own, None].to(dtype)


def _attend(query: Tensor, part: Part, *, scale: float, softcap: float | None) -> Partial:
    """Attention over all pairs of all lines, in the number type of the query.

    Pairs of another type are converted some at a time: the whole memory is never held twice. Where the processor has
    matrix tiles, int8 pairs are widened as they are multiplied, and few queries share what is read (docs/log.md).
    """
    queries = query.shape[1] * query.shape[2] // part.key.shape[1]
    may_share = part.scales is not None or 1 < queries <= FEW_QUERIES
    if may_share and part.valid is None:
        asked, _, _ = under_autocast(query, query, query)
        sizes = (part.key.shape[0], part.key.shape[1])
        fused = attend_lines(asked, part.pairs, sizes, scale=scale, softcap=softcap)
        if fused is not None:
            return fused
    device = query.device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    step = max(1, len(part)) if part.key.dtype == wanted else part.step()
    found: list[Partial] = []
    for start in range(0, len(part), step):
        stop = min(start + step, len(part))
        seen = None if part.valid is None else part.valid[:, start:stop]
        key, value = (read(start, stop, query.dtype) for read in (part.keys, part.values))
        found.append(attend(query, key, value, scale=scale, valid=seen, softcap=softcap))
        if len(found) == HELD_PARTIALS:
            found = [merge(found)]
    return merge(found) if found else nothing(query)


def _best(query: Tensor, part: Part, *, k: int, scale: float) -> Hits:
    """Exact top-k by one scan over the keys, block by block with a running best."""
    batch, heads, queries, _ = query.shape
    kv_heads = part.key.shape[1]
    # (batch, kv_heads, groups * query, dim)
    folded = query.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    block = max(k, SEARCH_ELEMENTS // max(folded.shape[:-1].numel(), 1), 128)
    best = None
    step = block if part.key.dtype == query.dtype else part.step()
    for start in range(0, len(part), block):
        stop = min(start + block, len(part))
        scores = torch.cat(
            [
                folded @ part.keys(some, min(some + step, stop), query.dtype).mT
                for some in range(start, stop, step)
            ],
            -1,
        ).to(exact_dtype(query))
        scores *= scale
        if part.valid is not None:
            scores.masked_fill_(~part.valid[:, None, None, start:stop], -torch.inf)
        top = scores.topk(min(k, stop - start), dim=-1)
        hits = Hits(top.values, top.indices + start)
        best = hits if best is None else _better(best, hits, k)
    assert best is not None
    shape = (batch, heads, queries, -1)
    return Hits(best.scores.reshape(shape), best.positions.reshape(shape))


def _better(one: Hits, other: Hits, k: int) -> Hits:
    scores = torch.cat([one.scores, other.scores], -1)
    top = scores.topk(min(k, scores.shape[-1]), dim=-1)
    return Hits(top.values, torch.cat([one.positions, other.positions], -1).gather(-1, top.indices))
