"""The model's own rotary encoding, found and applied per memory layer.

A memory layer needs its queries and keys twice: as the window rotates them, and un-rotated for the memory. The
un-rotated ones come from the model's own code by giving it the identity rotation (cos 1, sin 0): bit exact in every
type, where an inverse rotation would lose a digit of bf16 (HF_NOTES section 3). The true rotation is applied here,
with the architecture's own `apply_rotary_pos_emb`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longfocus.core.positions import at_first_position
from longfocus.errors import LongFocusError

CosSin = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rotary:
    """How one attention module rotates."""

    apply: Callable[..., tuple[Tensor, Tensor]]
    """The architecture's `apply_rotary_pos_emb(q, k, cos, sin)`."""
    rotary_dim: int
    """Leading components of a head that are rotated; the rest passes through."""
    attention_scaling: float
    """Factor on cos and sin at every position, 1 except for yarn and longrope."""
    is_used: bool
    """False for layers without positions (SmolLM3 has some)."""

    def rotate(
        self, query: Tensor, key: Tensor, position_embeddings: CosSin
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys `[batch, heads, length, head_dim]` rotated as the model itself would."""
        if not self.is_used:
            return query, key
        cos, sin = position_embeddings
        dim = self.rotary_dim
        if dim == query.shape[-1]:
            return self.apply(query, key, cos, sin)
        turned = self.apply(query[..., :dim], key[..., :dim], cos, sin)
        return torch.cat([turned[0], query[..., dim:]], -1), torch.cat(
            [turned[1], key[..., dim:]], -1
        )

    def at_first_position(self, key: Tensor) -> Tensor:
        """Un-rotated keys as they would stand at the window's first position."""
        return (
            at_first_position(key, self.rotary_dim, self.attention_scaling) if self.is_used else key
        )


def identity(position_embeddings: CosSin) -> CosSin:
    """The rotation that changes nothing, in the shape of a real one."""
    cos, sin = position_embeddings
    return torch.ones_like(cos), torch.zeros_like(sin)


def rotary_of(model: PreTrainedModel, attention: nn.Module) -> Rotary:
    """Find out how `attention`, a module of `model`, rotates. Raises LongFocusError if it cannot be told."""
    source = sys.modules[type(attention).__module__]
    apply = getattr(source, "apply_rotary_pos_emb", None)
    # Gemma 3 keeps one set of frequencies per kind of layer, under names such as full_attention_inv_freq
    layer_type = getattr(attention, "layer_type", None)
    for prefix in (f"{layer_type}_", ""):
        for module in model.modules():
            frequencies = getattr(module, f"{prefix}inv_freq", None)
            if apply is not None and frequencies is not None:
                scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
                return Rotary(
                    apply, 2 * frequencies.shape[-1], float(scaling), _uses_rotary(attention)
                )
    raise LongFocusError(
        f"{type(model).__name__} cannot carry a memory: its attention does not use a rotary encoding that LongFocus "
        "can apply itself (apply_rotary_pos_emb with cos and sin). Models with learned positions, ALiBi or complex "
        "rotary factors are not supported; see docs/models.md for those that are."
    )


def _uses_rotary(attention: nn.Module) -> bool:
    # only SmolLM3-like layers have the attribute; every other architecture rotates in all of its layers
    return bool(getattr(attention, "use_rope", True))
