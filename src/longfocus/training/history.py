"""What the rows of a batch have read before: keys and values by layer, and the document of every token.

A row goes on with at most one document, the one that its last token belongs to. So what a window may look back to is
told by two marks, and no mask of queries by keys is needed:

    before                 now
    a a a b b b b b        b b b c c c        seen   the tokens of b before:  0 0 0 1 1 1 1 1
                                              sees   the tokens of b now:     1 1 1 0 0 0

A document that comes again later, as in the next epoch, is not the same: only an unbroken run counts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from longfocus.errors import LongFocusError

Pairs = tuple[Tensor, Tensor]
"""Keys and values of one layer `[rows, kv_heads, tokens, head_dim]`."""


class Continuation(NamedTuple):
    """How a window goes on with what its rows have read before."""

    seen: Bool[Tensor, "rows before"]
    """Earlier tokens of the document that the row goes on with."""
    sees: Bool[Tensor, "rows now"]
    """Tokens of the window that belong to that document."""


def continuation(before: Int[Tensor, "rows before"], now: Int[Tensor, "rows now"]) -> Continuation:
    """Compare the documents of earlier tokens with those of the window behind them; -1 is no document."""
    document = now[:, :1].where(now[:, :1] >= 0, -2)
    return Continuation(_first_run(before.flip(1) == document).flip(1), _first_run(now == document))


def _first_run(claim: Bool[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
    """Marks the places up to the first at which `claim` does not hold."""
    return claim.int().cumprod(1).bool()


class History(NamedTuple):
    """What every row has read before its current window. Never changed: the next window makes a new one."""

    documents: Int[Tensor, "rows tokens"]
    pairs: dict[int, Pairs]
    """Empty before the first window."""

    @classmethod
    def before(cls, documents: Int[Tensor, "rows now"]) -> Self:
        """That of rows which begin with `documents`."""
        return cls(documents[:, :0], {})

    def check_rows(self, rows: int) -> None:
        """Raise LongFocusError unless a batch of `rows` rows can go on."""
        if len(self.documents) != rows:
            raise LongFocusError(
                f"This batch has {rows} rows, but the one before had {len(self.documents)}. Every row goes on where it "
                "ended, so their number cannot change. Keep the batch size, also for the last batch of a source."
            )

    def to(self, device: torch.device) -> Self:
        """On `device`, as after a state was loaded."""
        pairs = {i: (key.to(device), value.to(device)) for i, (key, value) in self.pairs.items()}
        return self._replace(documents=self.documents.to(device), pairs=pairs)

    def extended(self, documents: Tensor, pairs: Mapping[int, Pairs], most: int) -> Self:
        """The history with one more window; at most `most` tokens, and none that no row can see any more."""
        seen = torch.cat([self.documents, documents], 1)
        kept = min(most, int(continuation(seen, seen[:, -1:]).seen.sum(1).max()))
        both = {}
        for layer, (key, value) in pairs.items():
            before = self.pairs.get(layer, (None, None))
            both[layer] = _end(before[0], key, kept, dim=2), _end(before[1], value, kept, dim=2)
        return self._replace(documents=_end(self.documents, documents, kept, dim=1), pairs=both)

    def to_dict(self) -> dict[str, Tensor]:
        """Flat names, as torch.save and safetensors take them."""
        found = {"documents": self.documents}
        for layer, (keys, values) in self.pairs.items():
            found |= {f"keys.{layer}": keys, f"values.{layer}": values}
        return found

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        layers = [int(name.split(".")[1]) for name in state if name.startswith("keys.")]
        pairs = {layer: (state[f"keys.{layer}"], state[f"values.{layer}"]) for layer in layers}
        return cls(state["documents"], pairs)


def _end(before: Tensor | None, now: Tensor, tokens: int, dim: int) -> Tensor:
    """The last `tokens` of both together along `dim`, in the type of `now`; a copy, which keeps neither alive."""
    new = min(tokens, now.shape[dim])
    parts = [now.narrow(dim, now.shape[dim] - new, new)]
    if before is not None and (old := tokens - new):
        parts.insert(0, before.narrow(dim, before.shape[dim] - old, old).to(now.dtype))
    return torch.cat(parts, dim)
