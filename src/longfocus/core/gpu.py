"""Attention over one key set by the fused kernel of a GPU: torch's public `varlen_attn`, which returns the log-sum-exp.

It takes 16-bit numbers without mask, such as those of a memory; heads of a group share their keys, which are read where
they lie. The project has not had a GPU to run it on, so it is compared with `blocked` on made-up numbers before
it is used for a kind of input, and left alone, with a warning, where it fails or says something else.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from longfocus.core import blocked
from longfocus.core.blocked import Scoring

_WIDEST = 256
_CHECKED = (5, 77)
"""Queries and keys of the comparison."""
_TOLERANCE = 0.02


def can_run(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """Whether `forward` may be called with these arguments."""
    is_plain = (scoring.valid, scoring.bias, scoring.softcap) == (None, None, None)
    dim = query.shape[-1]
    return (
        query.device.type == "cuda"
        and is_plain
        and not scoring.causal
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and dim == key.shape[-1] == value.shape[-1]
        and dim % 8 == 0
        and dim <= _WIDEST
        and min(query.numel(), key.numel()) > 0
        and key.stride(-1) == value.stride(-1) == 1
        and _agrees(query.device, query.dtype, dim, query.shape[1] // key.shape[1])
    )


def forward(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, attend: Callable | None = None
) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, dim) and lse (batch, heads, query), as `blocked.forward` gives them."""
    found = [
        _one_row(*row, scoring.scale, attend or _library().varlen_attn)
        for row in zip(query, key, value, strict=True)
    ]
    outputs, lses = zip(*found, strict=True)
    return torch.stack(outputs).float(), torch.stack(lses).float()


def _one_row(
    query: Tensor, key: Tensor, value: Tensor, scale: float, attend: Callable
) -> tuple[Tensor, Tensor]:
    """(heads, query, dim) over (kv_heads, keys, dim)."""
    lengths = [tensor.shape[1] for tensor in (query, key)]
    ends = [torch.tensor([0, n], dtype=torch.int32, device=query.device) for n in lengths]
    output, lse = attend(
        *(tensor.transpose(0, 1) for tensor in (query, key, value)),
        *ends,
        *lengths,
        return_aux=_library().AuxRequest(lse=True),
        scale=scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return output.transpose(0, 1), lse


@cache
def _library():  # noqa: ANN202 (a module)
    """Where `varlen_attn` is; ImportError in older versions of torch."""
    found = import_module("torch.nn.attention.varlen")
    if not hasattr(found, "AuxRequest"):
        raise ImportError("this version of torch does not return the log-sum-exp")
    return found


@cache
def _agrees(device: torch.device, dtype: torch.dtype, dim: int, groups: int) -> bool:
    """Whether the kernel says what `blocked` says, keys and values side by side as in a memory."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = _CHECKED
    query = torch.randn(1, 2 * groups, queries, dim, generator=generator)
    pairs = torch.randn(1, 2, keys, 2, dim, generator=generator)
    query, pairs = query.to(device, dtype), pairs.to(device, dtype)
    given = (query, pairs[..., 0, :], pairs[..., 1, :], Scoring(scale=dim**-0.5))
    try:
        found = forward(*given)
    except (ImportError, RuntimeError, TypeError, ValueError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    else:
        expected = blocked.forward(*given)
        pairs_of_answers = zip(found, expected, strict=True)
        if all((one - other).abs().max() < _TOLERANCE for one, other in pairs_of_answers):
            return True
        reason = "it gives other numbers"
    warnings.warn(
        f"The fused attention of this GPU is not used for {dtype} heads of {dim}: {reason}. Memory attention is "
        "computed block by block instead, which is slower.",
        stacklevel=2,
    )
    return False
