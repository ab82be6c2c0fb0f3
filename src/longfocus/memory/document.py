"""The memory of one text: read once, never changed, shared by any number of sessions, batch rows and beams."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.memory.base import Part


@dataclass(frozen=True)
class DocumentMemory:
    """Keys and values of every memory layer, and the text that they came from."""

    name: str
    layers: Mapping[int, Part] = field(repr=False)
    """Per memory layer one line of pairs `[1, kv_heads, tokens, head_dim]`, keys as if at a window's start."""
    token_ids: Int[Tensor, " tokens"] = field(repr=False)
    positions: str
    """The `positions` setting that it was read with; another one could not use its keys."""
    text: str | None = field(default=None, repr=False)
    """The source; None if it was given as token ids without a tokenizer that can decode them."""
    offsets: Int[Tensor, "tokens 2"] | None = field(default=None, repr=False)
    """First and past-the-end character of every token in `text`."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(part.key.nbytes + part.value.nbytes for part in self.layers.values())

    def span(self, position: int) -> tuple[int, int]:
        """Characters [start, end) of the token at `position` in `text`."""
        if self.offsets is None:
            raise ValueError(
                f"document {self.name!r} was read from token ids and has no character offsets"
            )
        start, end = self.offsets[position].tolist()
        return start, end

    def line(self, position: int) -> int:
        """Line number, from 1, of the token at `position` in `text`."""
        return 1 + (self.text or "").count("\n", 0, self.span(position)[0])


def document_part(
    key: Float[Tensor, "1 kv_heads tokens dim"], value: Float[Tensor, "1 kv_heads tokens dim"]
) -> Part:
    """Pairs that every batch row sees."""
    return Part(key, value, None, None)


def check_document(document: DocumentMemory, config: FocusConfig, shape: tuple[int, int]) -> None:
    """Raise LongFocusError unless a model with `config` and `shape` (KV heads, head dim) can use the document."""
    if config.positions == "true":
        raise LongFocusError(
            f"Document {document.name!r} was read in isolation and has no place in one stream, which "
            "positions='true' needs. Use positions='window_start' or 'none' for documents."
        )
    if (
        sorted(document.layers) != list(config.memory_layers)
        or document.positions != config.positions
    ):
        raise LongFocusError(
            f"Document {document.name!r} was read with memory layers {sorted(document.layers)} and positions "
            f"{document.positions!r}; this model has {list(config.memory_layers)} and {config.positions!r}. "
            "Read the text again with this model."
        )
    parts = document.layers.values()
    if wrong := [p.key.shape for p in parts if (p.key.shape[1], p.key.shape[3]) != shape]:
        raise LongFocusError(
            f"Document {document.name!r} was read by another model: it has {wrong[0][1]} KV heads of size "
            f"{wrong[0][3]}, this one {shape[0]} of {shape[1]}. Read the text again with this model."
        )
