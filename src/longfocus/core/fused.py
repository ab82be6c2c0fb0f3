"""Attention over one key set by the platform's fused kernel, forward and backward, with the log-sum-exp.

On CPU that is torch's flash attention (bf16 on AMX included). It is a private operator, so it lives behind
these functions, and `blocked` answers wherever it is missing or cannot do what is asked.
"""

import torch
from torch import Tensor

from longfocus.core.blocked import Scoring, exact_dtype

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_BACKWARD = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NARROW = (torch.bfloat16, torch.float16)

SLOW_BACKWARD_KEYS = 512
"""With fewer keys than this the backward kernel is slower than blocks in 16-bit types (docs/log.md)."""


def can_run(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """Whether `forward` and `backward` may be called with these arguments."""
    if _FLASH is None or _FLASH_BACKWARD is None or query.device.type != "cpu":
        return False
    if scoring.softcap is not None:
        return False
    if scoring.causal and (
        query.shape[2] != key.shape[2] or scoring.valid is not None or scoring.bias is not None
    ):
        return False
    same_type = query.dtype in _DTYPES and query.dtype == key.dtype == value.dtype
    same_width = key.shape[-1] == value.shape[-1] == query.shape[-1]
    return same_type and same_width and query.numel() > 0 and key.numel() > 0


def backward_wins(key: Tensor) -> bool:
    """Whether the backward kernel is faster than blocks for so many keys."""
    return key.dtype not in _NARROW or key.shape[2] >= SLOW_BACKWARD_KEYS


def forward(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, dim) and lse (batch, heads, query), as `blocked.forward` gives them."""
    shape = query.shape
    mask, blind = _mask(scoring, query.dtype)
    query = _fold(query, key.shape[1], mask, scoring)
    assert _FLASH is not None, "ask can_run first"
    output, lse = _FLASH(
        query, key, value, attn_mask=mask, is_causal=scoring.causal, scale=scoring.scale
    )
    output = output.reshape(shape).to(exact_dtype(query))
    lse = lse.reshape(shape[:-1])
    if blind is not None:
        lse = lse.masked_fill(blind, -torch.inf)
    return output, lse


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value. `output` and `lse` may be those of a union of key sets: see `blocked`."""
    shape, kv_heads = query.shape, key.shape[1]
    mask, _ = _mask(scoring, query.dtype)
    folded = [
        _fold(tensor.to(query.dtype), kv_heads, mask, scoring)
        for tensor in (grad_output, query, output)
    ]
    lse = torch.where(lse.isinf(), 0.0, lse).reshape(folded[0].shape[:-1])
    assert _FLASH_BACKWARD is not None, "ask can_run first"
    grad_query, grad_key, grad_value = _FLASH_BACKWARD(
        *folded[:2],
        key,
        value,
        folded[2],
        lse,
        0.0,
        scoring.causal,
        attn_mask=mask,
        scale=scoring.scale,
    )
    return grad_query.reshape(shape), grad_key, grad_value


def _fold(tensor: Tensor, kv_heads: int, mask: Tensor | None, scoring: Scoring) -> Tensor:
    """The heads of a group become queries of one head, so that their keys are read once."""
    if scoring.causal or (mask is not None and mask.shape[2] > 1):
        return tensor
    return tensor.reshape(tensor.shape[0], kv_heads, -1, tensor.shape[-1])


def _mask(scoring: Scoring, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The additive mask, and which queries see no key at all: the kernel gives those an lse of 0."""
    mask = None
    if scoring.valid is not None:
        mask = torch.zeros(scoring.valid.shape, dtype=dtype).masked_fill_(
            ~scoring.valid, -torch.inf
        )
        mask = mask[:, None, None, :]
    if scoring.bias is not None:
        mask = scoring.bias.to(dtype) if mask is None else mask + scoring.bias.to(dtype)
    blind = None if mask is None else mask.amax(-1).isinf()
    return mask, blind
