"""The cache of one training window, whose memory layers look into what the rows have read before."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.window import MemoryLayer
from longfocus.memory import Part

if TYPE_CHECKING:
    from longfocus.hf.model import FocusMixin


class RowMemory(FocusCache):
    """A `FocusCache` for one window: nothing is evicted, and what it looks into is given, one part per memory layer."""

    def __init__(self, model: "FocusMixin", parts: Mapping[int, Part]) -> None:
        # a window that fits is never cut
        super().__init__(model, config=replace(model.focus.config, split="when_needed"))
        if self.config.positions == "true":
            raise LongFocusError(
                "positions='true' needs one stream from its beginning, but in training every window begins anew. "
                "Attach the memory with positions='window_start' or 'none'."
            )
        self._memory_layers = {
            i: layer for i, layer in enumerate(self.windows) if isinstance(layer, MemoryLayer)
        }
        for i, layer in self._memory_layers.items():
            layer.documents = [parts[i]]

    def window_pairs(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of the computed window as a memory holds them, by memory layer, without gradient."""
        # training keeps what gradients were computed with; int8 is made when a memory is kept
        dtype = self.config.memory_dtype if self.config.memory_dtype != "int8" else None
        found = {}
        for i, layer in self._memory_layers.items():
            pairs = layer.pairs_to_remember()
            key, value = (t.detach().to(getattr(torch, dtype) if dtype else t.dtype) for t in pairs)
            found[i] = key, value
        return found
