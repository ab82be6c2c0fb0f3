"""The state of one conversation's cache as tensors and numbers, so that it goes on where it stopped."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longfocus.core.positions import Origin
from longfocus.hf.cache import FocusCache
from longfocus.hf.window import MemoryLayer
from longfocus.memory import Part
from longfocus.memory.quantized import LARGEST, Scales
from longfocus.memory.sorting import in_order
from longfocus.memory.trusted import are_finite

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
            parts = [in_order(part) for part in layer.store.parts()]
            blocks[str(number)] = len(parts)
            for place, part in enumerate(parts):
                for name, tensor in zip(_PAIRS, (part.key, part.value), strict=True):
                    tensors[f"memory.{number}.{place}.{name}"] = tensor
                for name, scale in zip(_PAIRS, part.scales or (), strict=False):
                    tensors[f"memory.{number}.{place}.{name}_scale"] = scale
    origin = cache.origin
    facts = {
        "length": cache.get_seq_length(),
        "start": cache.start,
        "origin": None if origin is None else int(origin.position),
        "blocks": blocks,
    }
    return tensors, facts


def restore_cache(
    cache: FocusCache,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    shape: tuple[int, int],
) -> None:
    """Give a new cache that state. Raises KeyError, ValueError or TypeError for one that fits no such cache."""
    length, start, position = (facts[name] for name in ("length", "start", "origin"))
    if type(length) is not int or type(start) is not int or not 0 <= start <= length:
        raise ValueError(f"length {length!r}, of which {start!r} have left the window")
    if position is not None and type(position) is not int:
        raise ValueError(f"origin {position!r}")
    device, used = cache.device, set()
    for number, layer in enumerate(cache.windows):
        names = [f"window.{number}.{name}" for name in _WINDOW[: len(layer.pairs())]]
        if any((name in tensors) != (length > start) for name in names[:2]):
            raise ValueError(f"{names[0]} and a window of {length - start} tokens")
        window = tuple(tensors[n].to(device) if n in tensors else None for n in names)
        _check([t for t in window if t is not None], shape, length - start)
        used |= set(names)
        stored: list[Part] = []
        if isinstance(layer, MemoryLayer):
            for place in range(facts["blocks"][str(number)]):
                own = f"memory.{number}.{place}."
                stored.append(_stored(tensors, own, shape).to(device))
                used |= {name for name in tensors if name.startswith(own)}
            if sum(map(len, stored)) != start:
                raise ValueError(f"layer {number} does not remember {start} tokens")
        layer.restore(start, window, stored)
    if unknown := set(tensors) - used:
        raise ValueError(f"unknown tensors {sorted(unknown)[:3]}")
    origin = None
    if position is not None:
        place = torch.tensor([[position]], device=device)
        origin = Origin(place, torch.ones_like(place, dtype=torch.bool))
    cache.restore(length, origin)


def _stored(tensors: Mapping[str, Tensor], own: str, shape: tuple[int, int]) -> Part:
    """A block of a memory, whose tensors have names that begin so."""
    found = {name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)}
    key, value = (found.pop(name) for name in _PAIRS)
    if key.dtype != torch.int8:
        if found:
            raise ValueError(f"unknown tensors {sorted(found)[:3]}")
        _check([key, value], shape, key.shape[2])
        return Part(key, value)
    scales = Scales(*(found.pop(f"{name}_scale") for name in _PAIRS))
    expected = (1, shape[0], key.shape[2])
    is_right = value.dtype == torch.int8 and tuple(value.shape) == (*expected, shape[1])
    if found or not is_right or tuple(key.shape) != (*expected, shape[1]):
        raise ValueError(f"int8 pairs of shape {tuple(key.shape)}")
    for scale in scales:
        if tuple(scale.shape) != expected or scale.dtype != torch.float32:
            raise ValueError(f"scales of shape {tuple(scale.shape)} and type {scale.dtype}")
        if not are_finite(scale * LARGEST):
            raise ValueError("pairs that are NaN or infinite")
    return Part(key, value, scales=scales)


def _check(pairs: Sequence[Tensor], shape: tuple[int, int], tokens: int) -> None:
    heads, dim = shape
    for tensor in pairs:
        if tuple(tensor.shape) != (1, heads, tokens, dim) or not tensor.is_floating_point():
            raise ValueError(f"pairs of shape {tuple(tensor.shape)} and type {tensor.dtype}")
        if not are_finite(tensor):
            raise ValueError("pairs that are NaN or infinite")
