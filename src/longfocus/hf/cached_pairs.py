"""The keys and values that a cache holds, for whoever wants to look at them."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.window import MemoryLayer, WindowLayer
from longfocus.memory import Part
from longfocus.memory.sorting import in_order


class CachedPairs(Cache):
    """A cache of windows and memories that can be looked at."""

    config: FocusConfig
    windows: list[WindowLayer]

    def window_length(self, layer: int = 0) -> int:
        """Tokens in the window of `layer`."""
        return self.windows[layer].local

    def memory_length(self, layer: int) -> int:
        """Evicted conversation tokens that `layer` remembers; 0 for layers without memory. Documents not counted."""
        found = self.windows[layer]
        return len(found.store) if isinstance(found, MemoryLayer) else 0

    def window_keys(self, layer: int) -> Tensor:
        """Keys of the window `[batch, kv_heads, window, head_dim]`: un-rotated in memory layers."""
        return _present(self.windows[layer].keys, layer)

    def window_values(self, layer: int) -> Tensor:
        """Values of the window `[batch, kv_heads, window, head_dim]`."""
        return _present(self.windows[layer].values, layer)

    def memory_keys(self, layer: int) -> Tensor:
        """Keys of the conversation's own memory, copied together: `[batch, kv_heads, tokens, head_dim]`."""
        found = [p.keys(0, len(p), _numbers(p))[list(p.rows or ())] for p in self._own(layer)]
        return torch.cat(found, dim=2)

    def memory_values(self, layer: int) -> Tensor:
        """Values of the conversation's own memory, as `memory_keys`."""
        found = [p.values(0, len(p), _numbers(p))[list(p.rows or ())] for p in self._own(layer)]
        return torch.cat(found, dim=2)

    def memory_valid(self, layer: int) -> Tensor:
        """Which entries of the own memory are real tokens `[batch, tokens]`; the others are padding."""
        found = []
        for part in self._own(layer):
            rows = list(part.rows or ())
            is_real = torch.ones(len(rows), len(part), dtype=torch.bool)
            found.append(is_real if part.valid is None else part.valid[rows].cpu())
        return torch.cat(found, dim=1)

    def _own(self, layer: int) -> list[Part]:
        found = self.windows[layer]
        if not isinstance(found, MemoryLayer):
            raise LongFocusError(
                f"Layer {layer} has no memory. It is in {self.config.memory_layers}."
            )
        parts = [in_order(part) for part in found.store.parts()]
        if not parts:
            raise LongFocusError(
                f"The memory of layer {layer} is empty. Nothing has left its window yet."
            )
        return parts


def _numbers(part: Part) -> torch.dtype:
    return torch.float32 if part.scales is not None else part.key.dtype


def _present(pairs: Tensor | None, layer: int) -> Tensor:
    if pairs is None:
        raise LongFocusError(
            f"The window of layer {layer} is empty. Run the model with this cache first."
        )
    return pairs


def may_be_cut(cache: Cache) -> bool:
    """Whether `cache.crop` takes away exactly what came last; a sliding window has forgotten what was before."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
