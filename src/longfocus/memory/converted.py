"""The pairs of a document in another number type, made block by block: beside the result little is held."""

import torch
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.quantized import quantize
from longfocus.memory.sorting import room
from longfocus.memory.trusted import are_finite


def converted(part: Part, dtype: str) -> Part:
    """The pairs as numbers of a type of torch, or as "int8" with a scale for each vector; on no file.

    Raises LongFocusError for pairs that are too large for the type.
    """
    part.verify()
    is_int8 = dtype == "int8"
    kind = getattr(torch, dtype)
    key, value, scales = room(part.key.shape, kind, part.key.device)
    wide = torch.float32 if is_int8 else kind
    step = part.step()
    for start in range(0, len(part), step):
        own = slice(start, min(start + step, len(part)))
        for place, (made, read) in enumerate(((key, part.keys), (value, part.values))):
            numbers = _finite(read(own.start, own.stop, wide), dtype)
            if scales is None:
                made[:, :, own] = numbers
            else:
                made[:, :, own], scales[place][:, :, own] = quantize(numbers)
    return Part(key, value, scales=scales, clusters=part.clusters)


def _finite(numbers: Tensor, dtype: str) -> Tensor:
    if not are_finite(numbers):
        raise LongFocusError(
            f"Some keys or values are too large for {dtype}. Choose bfloat16 or int8, which take as much room."
        )
    return numbers
