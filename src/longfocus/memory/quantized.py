"""int8 pairs: every key and every value of every head has a scale of its own.

A vector x is kept as round(x / s) with s = max|x| / 127, so that no component is off by more than s / 2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LARGEST = 127


class Scales(NamedTuple):
    """What int8 keys and values are multiplied by."""

    key: Float[Tensor, "lines kv_heads pairs"]
    value: Float[Tensor, "lines kv_heads pairs"]


def quantize(
    vectors: Float[Tensor, "*shape dim"],
) -> tuple[Int8[Tensor, "*shape dim"], Float[Tensor, "*shape"]]:
    """Vectors as int8 and their scales in float32; a vector of zeros has scale 0."""
    wide = vectors.float()
    scale = wide.abs().amax(-1) / LARGEST
    steps = wide / torch.where(scale > 0, scale, 1.0)[..., None]
    return steps.round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale
