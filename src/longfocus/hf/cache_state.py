"""The state of one conversation's cache as tensors and numbers, so that it goes on bit for bit where it stopped."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longfocus.core.positions import Origin
from longfocus.hf.cache import FocusCache
from longfocus.hf.window import MemoryLayer

_WINDOW = ("keys", "values", "rotated")
_PAIRS = ("key", "value")


def cache_state(cache: FocusCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Window and own memory of every layer by name, and what else is known. Documents are not part of it."""
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, int] = {}
    for number, layer in enumerate(cache.windows):
        for name, tensor in zip(_WINDOW, layer.pairs(), strict=False):
            if tensor is not None:
                tensors[f"window.{number}.{name}"] = tensor
        if isinstance(layer, MemoryLayer):
            parts = layer.store.parts()
            blocks[str(number)] = len(parts)
            for place, part in enumerate(parts):
                for name, tensor in zip(_PAIRS, (part.key, part.value), strict=True):
                    tensors[f"memory.{number}.{place}.{name}"] = tensor
    origin = cache.origin
    facts = {
        "length": cache.get_seq_length(),
        "start": cache.start,
        "origin": None if origin is None else int(origin.position),
        "blocks": blocks,
    }
    return tensors, facts


def restore_cache(
    cache: FocusCache, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Give a new cache that state. Raises KeyError, ValueError or TypeError for one that fits no such cache."""
    device = cache.device
    for number, layer in enumerate(cache.windows):
        names = [f"window.{number}.{name}" for name in _WINDOW[: len(layer.pairs())]]
        window = tuple(tensors[n].to(device) if n in tensors else None for n in names)
        stored = []
        if isinstance(layer, MemoryLayer):
            for place in range(facts["blocks"][str(number)]):
                key, value = (tensors[f"memory.{number}.{place}.{name}"] for name in _PAIRS)
                stored.append((key.to(device), value.to(device)))
        layer.restore(facts["start"], window, stored)
    position = facts["origin"]
    origin = None
    if position is not None:
        place = torch.tensor([[position]], device=device)
        origin = Origin(place, torch.ones_like(place, dtype=torch.bool))
    cache.restore(facts["length"], origin)
