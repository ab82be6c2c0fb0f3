"""Where a token stands as a memory layer sees it (paper section 3.1, appendix on LongLLaMA).

window_start   local tokens: the model's own rotary at their offset inside the window
               memory keys:  as if at the window's first token, whatever their age
none           no rotary in memory layers at all
true           everything at its real place in one stream
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def at_first_position(
    key: Float[Tensor, "batch heads length dim"], rotary_dim: int, attention_scaling: float
) -> Float[Tensor, "batch heads length dim"]:
    """Un-rotated keys as rotary encoding leaves them at position 0.

    That is unchanged, except that yarn and longrope scale cos and sin, and so the first `rotary_dim`
    components, by `attention_scaling` at every position.
    """
    if attention_scaling == 1.0:
        return key
    return torch.cat([key[..., :rotary_dim] * attention_scaling, key[..., rotary_dim:]], dim=-1)


class Origin(NamedTuple):
    """The position of each row's window start, in the numbering of the caller."""

    position: Int[Tensor, "batch 1"]
    is_placed: Bool[Tensor, "batch 1"]
    """False while a row's window holds nothing but padding."""


def find_origin(
    positions: Int[Tensor, "batch length"],
    is_real: Bool[Tensor, "batch length"] | None,
    window: int,
    earlier: Origin | None = None,
) -> Origin:
    """The smallest position in each row's window so far, as LongLLaMA counts it: padding included.

    Padding may carry a filler far below the real tokens (`generate` writes 0); it counts only within a window's
    length of them. `earlier` is the origin found before these tokens came; rows that it placed stay as they are.
    """
    if earlier is not None:
        positions = torch.cat([earlier.position, positions], dim=1)
        if is_real is not None:
            is_real = torch.cat([earlier.is_placed, is_real], dim=1)
    if is_real is None:
        found = Origin(
            positions.amin(1, keepdim=True), torch.ones_like(positions[:, :1], dtype=torch.bool)
        )
    else:
        highest = torch.iinfo(positions.dtype).max
        first_real = positions.masked_fill(~is_real, highest).amin(1, keepdim=True)
        is_placed = is_real.any(1, keepdim=True)
        counts = (positions > first_real - window) | ~is_placed
        found = Origin(positions.masked_fill(~counts, highest).amin(1, keepdim=True), is_placed)
    if earlier is None:
        return found
    return Origin(torch.where(earlier.is_placed, earlier.position, found.position), found.is_placed)
