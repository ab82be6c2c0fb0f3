"""The inputs of an attached model's forward: checked, cut into windows, and the outputs joined again."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from longfocus.core.windows import Piece
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.trace import Trace

if TYPE_CHECKING:
    from longfocus.hf.model import FocusMixin


class Windows:
    """The tokens of one call of the model, as its pieces need them."""

    def __init__(
        self,
        memory: FocusCache,
        rows: int,
        tokens: int,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        logits_to_keep: int | Tensor,
        trace: Trace | None,
    ) -> None:
        self.memory, self.tokens, self.trace = memory, tokens, trace
        self.logits_to_keep = logits_to_keep
        self._base = memory.local
        self._seen = memory.get_seq_length()
        self._mask = _window_mask(memory, rows, tokens, attention_mask)
        self._positions = position_ids
        # asked once: a step of decoding is short, and masks of ones are what generate passes
        self._is_padded = self._mask is not None and not bool(self._mask.all())
        if self._mask is not None:
            memory.see(self._mask[:, : self._base] if self._is_padded else None)

    @property
    def prompt(self) -> int:
        """How many of the tokens are given; an assisted decoder that asks for k+1 logits sent k guesses with them."""
        if (
            not self.memory.is_assisted
            or isinstance(self.logits_to_keep, Tensor)
            or self.logits_to_keep == 0
        ):
            return self.tokens
        return max(self.tokens - self.logits_to_keep + 1, 1)

    def wanted(self, piece: Piece) -> int:
        """How many logits, counted from the end of the piece, the caller asked for."""
        if isinstance(self.logits_to_keep, Tensor) or self.logits_to_keep == 0:
            return piece.stop - piece.start
        return max(piece.stop - max(piece.start, self.tokens - self.logits_to_keep), 0)

    def traced(self, piece: Piece) -> int:
        """How many tokens, counted from the end of the piece, are recorded in the trace."""
        if self.trace is None:
            return 0
        last = self.tokens if self.trace.last is None else self.trace.last
        return max(piece.stop - max(piece.start, self.tokens - last), 0)

    @property
    def only_looks(self) -> bool:
        """Whether nothing is wanted but the trace."""
        return self.trace is not None and self.trace.ends_pass

    def arguments(self, piece: Piece, shared: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the stock forward for one piece."""
        chosen = dict(shared)
        for name in ("input_ids", "inputs_embeds"):
            if chosen[name] is not None:
                chosen[name] = chosen[name][:, piece.start : piece.stop]
        mask = self._visible(piece)
        device = next(
            t.device for t in (chosen["input_ids"], chosen["inputs_embeds"]) if t is not None
        )
        if self._positions is None:
            positions = torch.arange(
                self._seen + piece.start, self._seen + piece.stop, device=device
            )[None]
        else:
            positions = self._positions[:, piece.start : piece.stop]
        is_real = None
        if mask is not None and self._is_padded:
            is_real = mask[:, self.memory.local :]
            positions = positions.expand(is_real.shape[0], -1)
        return {
            **chosen,
            # a mask of ones says nothing, and costs the model a look at it
            "attention_mask": mask if self._is_padded else None,
            "position_ids": self.memory.place(positions, is_real),
        }

    def per_row(self, shared: dict[str, Any]) -> list[Tensor]:
        """Everything by which the rows of the batch may differ, `[rows, ...]` each."""
        given = (shared["input_ids"], shared["inputs_embeds"], self._mask, self._positions)
        return [tensor for tensor in given if tensor is not None]

    def extend(self, piece: Piece) -> None:
        """Account for a computed piece in the cache."""
        self.memory.extend(
            piece.stop - piece.start, self._visible(piece) if self._is_padded else None
        )

    def _visible(self, piece: Piece) -> Tensor | None:
        """The columns of the mask for the window so far and the piece."""
        if self._mask is None:
            return None
        start = self._base + piece.start - self.memory.local
        return self._mask[:, start : self._base + piece.stop]


def _window_mask(memory: FocusCache, rows: int, tokens: int, mask: Any) -> Tensor | None:
    if mask is None:
        return None
    needed = memory.local + tokens
    seen = memory.get_seq_length() + tokens
    # the published rules use the last columns and ignore what stands before them
    fits = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == rows
    fits = fits and (
        mask.shape[1] == seen or (memory.config.split == "longllama" and mask.shape[1] >= needed)
    )
    if not fits:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise LongFocusError(
            f"attention_mask must be 2-dimensional and cover everything seen plus the new tokens: [{rows}, {seen}]. "
            f"Got {got}. Masks prepared in 4 dimensions cannot be cut into windows."
        )
    return mask[:, -needed:].bool()


def cache_for(model: "FocusMixin", given: Any, rows: int) -> FocusCache:
    """The FocusCache to use: the given one, or a new one in place of nothing or of generate's empty cache."""
    if given is None:
        return FocusCache(model)
    if isinstance(given, FocusCache):
        if (
            given.config.memory_layers != model.focus.config.memory_layers
            or len(given) != model.focus.num_layers
        ):
            raise LongFocusError(
                f"This FocusCache was made for memory layers {given.config.memory_layers} of {len(given)}; "
                f"this model has {model.focus.config.memory_layers} of {model.focus.num_layers}. Make a new FocusCache."
            )
        if (held := given.rows) not in (None, rows):
            raise LongFocusError(
                f"This FocusCache holds {held} rows, the input {rows}. They must agree."
            )
        return given
    is_empty = type(given) is DynamicCache and not given.offloading and given.get_seq_length() == 0
    if is_empty and all(isinstance(layer, DynamicLayer) for layer in given.layers):
        return FocusCache(model)
    raise LongFocusError(
        f"A model with memory needs a FocusCache. Got a {type(given).__name__}"
        f"{' that is not empty' if type(given) is DynamicCache else ''}. Pass longfocus.FocusCache(model), or nothing; "
        "static, quantized, offloaded and paged caches have no windows to evict."
    )


def join(outputs: list[tuple[Any, int]]) -> Any:
    """One output with the wanted logits (and hidden states) of all pieces."""
    joined = outputs[-1][0]
    if len(outputs) == 1:
        return joined
    joined.logits = torch.cat(
        [output.logits[:, -wanted:] for output, wanted in outputs if wanted], dim=1
    )
    if joined.hidden_states is not None:
        layers = zip(*(output.hidden_states for output, _ in outputs), strict=True)
        joined.hidden_states = tuple(torch.cat(states, dim=1) for states in layers)
    return joined
