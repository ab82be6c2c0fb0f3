"""The cache of windows that are read side by side, a row each: consecutive windows of one text.

A memory layer has the keys of all rows before it attends to any, so that every row can look into the windows before it,
those of earlier calls and those of earlier rows, however many memory layers there are:

    row 0    what was read before | own window
    row 1    what was read before | window of row 0 | own window
    row 2    what was read before | window of row 0 | window of row 1 | own window
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longfocus.hf.cache import FocusCache
from longfocus.hf.window import MemoryLayer
from longfocus.memory import Part
from longfocus.memory.quantized import Scales, quantize


class ReadingCache(FocusCache):
    """A `FocusCache` whose rows are consecutive windows of one text; the first `prefix` tokens of each are no text.

    Its memory is one line, that of the text. The caller takes what stands in the windows, in order.
    """

    def __init__(self, model: Any, prefix: int = 0, **options: Any) -> None:
        super().__init__(model, **options)
        for number, layer in enumerate(self.windows):
            if isinstance(layer, MemoryLayer):
                made = ReadingLayer(layer.rotary, layer.positions, store=layer.store)
                made.prefix = prefix
                self.windows[number] = self.layers[number] = made


class ReadingLayer(MemoryLayer):
    """The windows of a memory layer, a row each, and what was read before them."""

    prefix = 0

    def parts(self) -> list[Part]:
        """What was read before, which every row sees, and the windows of this call, of which each sees the earlier."""
        before = [replace(part, rows=None) for part in super().parts()]
        rows = 0 if self.keys is None else self.keys.shape[0]
        return [*before, self._earlier_windows(rows)] if rows > 1 else before

    def text_pairs(
        self,
    ) -> tuple[Float[Tensor, "1 kv_heads tokens dim"], Float[Tensor, "1 kv_heads tokens dim"]]:
        """Keys and values of the text in all windows, one after the other, in the type of the memory (not yet int8)."""
        found = [pairs[:, :, self.prefix :] for pairs in self.pairs_to_remember()]
        # (rows, kv_heads, tokens, dim) -> (1, kv_heads, rows * tokens, dim)
        key, value = (pairs.transpose(0, 1).flatten(1, 2)[None] for pairs in found)
        return self.store.numbers(key), self.store.numbers(value)

    def _earlier_windows(self, rows: int) -> Part:
        """One line that all rows look at, each up to where its own window begins."""
        pairs, scales = list(self.text_pairs()), None
        if self.store.dtype == torch.int8:
            (key, key_scale), (value, value_scale) = map(quantize, pairs)
            pairs, scales = (
                [key, value],
                Scales(*(s.expand(rows, -1, -1) for s in (key_scale, value_scale))),
            )
        key, value = (line.expand(rows, -1, -1, -1) for line in pairs)
        places = torch.arange(key.shape[2], device=key.device)
        begins = torch.arange(rows, device=key.device) * (key.shape[2] // rows)
        return Part(key, value, places < begins[:, None], tuple(range(rows)), scales)
