"""How much space a computation takes: its largest tensor, and what it keeps for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Space:
    """Counts elements of storage, so that views and expanded tensors count what they stand on."""

    largest: int = 0
    """Elements of the largest tensor that any operation made (views of its inputs aside), backward passes too."""
    kept: dict[int, int] = field(default_factory=dict)
    """Elements of every storage that was saved for the backward pass."""

    @property
    def saved(self) -> int:
        return sum(self.kept.values())


class _Watch(TorchDispatchMode):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {address(tensor) for tensor in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            if address(tensor) not in given:
                self.space.largest = max(self.space.largest, elements(tensor))
        return result


def tensors(anything: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(anything) if isinstance(leaf, Tensor)]


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


@contextmanager
def measured() -> Iterator[Space]:
    """Watches everything that torch computes inside, backward passes too."""
    space = Space()
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        # kept alive, so that no two storages ever have one address
        alive.append(tensor)
        space.kept[address(tensor)] = elements(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Watch(space):
        yield space
