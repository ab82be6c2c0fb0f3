"""The window before, as a transformers cache: what a stock model sees besides its own window in Transformer-XL.

    positions    0 ... window-1            window ... 2*window-1       the same at every step
                 previous, no gradient     current
                    ^                         |
                    |    turned back by       |  kept, as it was rotated
                    +------ one window -------+

A rotary score depends on the distance of query and key alone. So the current window always stands at positions
window ... 2*window-1, however long its row has run. The keys that it leaves were rotated for there, and are turned back
by `window` positions when the next window looks at them: by the inverse of the rotation at position `window`, which the
model has just made for the current window's first token, applied by the architecture's own `apply_rotary_pos_emb`. A
key is turned back once and then forgotten, so no error grows. With float32 weights, also under autocast, the error is
that of one more multiplication in float32; keys of a model in bfloat16 are rounded once more.

Un-rotated keys would need an attention function of ours in every layer. Positions that count on would lose digits, and
leave the range in which scaled rotary encodings keep their frequencies.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from longfocus.errors import LongFocusError
from longfocus.hf.layers import attention_modules
from longfocus.hf.refusals import BASES
from longfocus.hf.rotary import CosSin, Rotary, rotary_of

Pairs = tuple[Tensor, Tensor]
FULL, SLIDING = "full_attention", "sliding_attention"


class PreviousLayer(DynamicLayer):
    """One layer: shows the previous window before the current one, and keeps the current one for the next step."""

    def __init__(self, rotary: Rotary, previous: Pairs | None) -> None:
        super().__init__()
        self.rotary, self.previous = rotary, previous
        self.current: Pairs | None = None
        self._one_window: CosSin | None = None

    def note_rotation(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the attention module: the rotation of the window's first token."""
        del module, args
        cos, sin = kwargs["position_embeddings"]
        self._one_window = cos[:, :1].detach(), sin[:, :1].detach()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # compact copies: some models hand over slices of one large projection
        self.current = key_states.detach().contiguous(), value_states.detach().contiguous()
        if self.previous is None:
            return key_states, value_states
        key = self._turned_back(self.previous[0]).to(key_states.dtype)
        value = self.previous[1].to(value_states.dtype)
        return torch.cat([key, key_states], 2), torch.cat([value, value_states], 2)

    def _turned_back(self, key: Tensor) -> Tensor:
        assert self._one_window is not None, "the attention module has told no rotation"
        cos, sin = self._one_window
        # the key keeps the scale that it was rotated with (yarn, longrope)
        scale = self.rotary.attention_scaling
        return self.rotary.rotate(key, key, (cos / scale, -sin / scale))[1]


class PreviousWindow(Cache):
    """The cache of one forward pass of a stock model, given what the pass before left in `current`."""

    def __init__(self, rotaries: Mapping[int, Rotary], previous: Mapping[int, Pairs]) -> None:
        self.held = [PreviousLayer(rotary, previous.get(i)) for i, rotary in rotaries.items()]
        super().__init__(layers=list(self.held))

    @contextmanager
    def told_rotations(self, model: PreTrainedModel) -> Iterator[None]:
        """Meanwhile every attention module tells its layer how it rotates."""
        handles = [
            module.register_forward_pre_hook(self.held[layer].note_rotation, with_kwargs=True)
            for layer, module in attention_modules(model).items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def current(self) -> dict[int, Pairs]:
        """Keys and values of the computed window, without gradient; raises LongFocusError if a layer gave none."""
        found = {i: layer.current for i, layer in enumerate(self.held) if layer.current is not None}
        if missing := sorted(set(range(len(self.held))) - set(found)):
            raise LongFocusError(
                f"Layers {missing} did not use the cache that they were given, so they saw no previous window. Please "
                "report the architecture; until then train it by another method."
            )
        return found


def rotaries_of(model: PreTrainedModel) -> dict[int, Rotary]:
    """How every layer rotates. Raises LongFocusError if `model` cannot see a previous window."""
    implementation = model.config._attn_implementation
    if implementation not in BASES:
        raise LongFocusError(
            f"A previous window needs a mask of its own, which the attention implementation {implementation!r} of this "
            f"{type(model).__name__} does not take. Allowed: {', '.join(map(repr, BASES))}, without memory attached. "
            "Call longfocus.detach(model), or model.set_attn_implementation('sdpa')."
        )
    return {
        layer: rotary_of(model, module)
        for layer, module in sorted(attention_modules(model).items())
    }


def refuse_checkpointing(model: PreTrainedModel) -> None:
    if model.training and model.is_activation_checkpointing:
        raise LongFocusError(
            "Gradient checkpointing recomputes layers without their cache, so the previous window would be lost "
            "silently. Turn it off, or train by crossbatch, which supports it."
        )


def window_mask(
    model: PreTrainedModel, visible: Bool[Tensor, "rows query keys"]
) -> Tensor | dict[str, Tensor]:
    """`visible` as the model's forward takes it: its sliding layers see less, the last query stands at the last key."""
    config = model.config
    # not every architecture has several kinds of layers, or sliding ones
    kinds = set(getattr(config, "layer_types", None) or ())
    reach = getattr(config, "sliding_window", None)
    if unknown := sorted(kinds - {FULL, SLIDING}):
        raise LongFocusError(
            f"This {type(model).__name__} has layers of kind {unknown}, which cannot be given a previous "
            f"window. Allowed: {FULL!r}, {SLIDING!r}. Train it by another method."
        )
    if reach is None or (kinds and SLIDING not in kinds):
        return _prepared(model, visible)
    queries, keys = visible.shape[1:]
    place = torch.arange(keys, device=visible.device)
    near = _prepared(model, visible & (place > place[keys - queries :, None] - reach))
    return {FULL: _prepared(model, visible), SLIDING: near} if kinds else near


def _prepared(model: PreTrainedModel, visible: Tensor) -> Tensor:
    """`[rows, 1, query, keys]`, of the kind that the attention implementation works with."""
    visible = visible[:, None]
    if model.config._attn_implementation == "sdpa":
        return visible
    hidden = torch.finfo(model.dtype).min
    return torch.zeros_like(visible, dtype=model.dtype).masked_fill_(~visible, hidden)
