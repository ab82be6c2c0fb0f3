"""Random queries and key sets, and the comparison of two attentions by values and gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from longfocus.core import blocked, reference
from longfocus.core.attention import Partial

Attention = Callable[..., tuple[Tensor, Tensor]]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Set(NamedTuple):
    """One query tensor and the keys and values that it looks into."""

    query: Tensor
    key: Tensor
    value: Tensor


def random_set(
    queries: int = 63,
    keys: int = 100,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    batch: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
) -> Set:
    """Standard normal, queries twice as long, so that scores are peaked."""
    query = 2 * torch.randn(batch, heads, queries, dim, dtype=torch.float64)
    key, value = (torch.randn(batch, kv_heads, keys, dim, dtype=torch.float64) for _ in range(2))
    return Set(query.to(dtype), key.to(dtype), value.to(dtype))


def oracle(*tensors: Tensor, **options: Any) -> Partial:
    """The plain formula in float64, whatever the type of the inputs."""
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }
    return Partial(*reference.attention(*(tensor.double() for tensor in tensors), **wide))


def small_blocks(monkeypatch: pytest.MonkeyPatch, keys: int = 32) -> None:
    """Makes the blocked path work in blocks of `keys` keys."""
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", keys)
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)


def assert_same_values(ours: Attention, theirs: Attention, inputs: tuple[Tensor, ...]) -> None:
    tolerance = TOLERANCE[inputs[0].dtype]
    with torch.no_grad():
        close(ours(*inputs), theirs(*inputs), tolerance)


def assert_same_with_gradients(
    ours: Attention, theirs: Attention, inputs: tuple[Tensor, ...]
) -> None:
    """Output, lse, and the gradients of every input through both of them."""
    tolerance = TOLERANCE[inputs[0].dtype]
    results, gradients = zip(
        *(with_gradients(attention, inputs) for attention in (ours, theirs)), strict=True
    )
    close(*results, tolerance)
    for our_gradient, their_gradient in zip(*gradients, strict=True):
        # gradients are sums over queries and keys, so their rounding grows with their size
        close(
            [our_gradient],
            [their_gradient],
            tolerance * max(1.0, float(their_gradient.abs().max())),
        )


def with_gradients(
    attention: Attention, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    output, lse = attention(*leaves)
    return (output.detach(), lse.detach()), torch.autograd.grad(loss(output, lse), leaves)


def loss(output: Tensor, lse: Tensor) -> Tensor:
    """A fixed random weighting of output and lse; a query that sees nothing has no say through its lse."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    other = torch.randn(lse.shape, generator=generator, dtype=torch.float64)
    return (output * weight).sum() + (lse.masked_fill(lse.isinf(), 0.0) * other).sum()


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance, rtol=0)
