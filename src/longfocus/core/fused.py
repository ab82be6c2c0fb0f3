"""Attention over one key set by the platform's fused kernel, where it also gives the log-sum-exp.

On CPU that is torch's flash attention (bf16 on AMX included). It is a private operator, so it lives behind
these two functions and `blocked` answers wherever it is missing, or gradients are wanted.
"""

import torch
from torch import Tensor

from longfocus.core.blocked import Scoring, exact_dtype

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def can_attend(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """Whether `attend` may be called with these arguments."""
    if _FLASH is None or query.device.type != "cpu" or scoring.softcap is not None:
        return False
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        return False
    if scoring.causal and (
        query.shape[2] != key.shape[2] or scoring.valid is not None or scoring.bias is not None
    ):
        return False
    same_type = query.dtype in _DTYPES and query.dtype == key.dtype == value.dtype
    return same_type and query.numel() > 0 and key.shape[-1] == value.shape[-1] == query.shape[-1]


def attend(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, dim) and lse (batch, heads, query), as `blocked.forward` gives them."""
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    mask, blind = _mask(scoring, query.dtype)
    if mask is None and not scoring.causal:
        # the heads of a group become queries of one head, so that their keys are read once
        query = query.reshape(batch, kv_heads, -1, dim)
    assert _FLASH is not None, "ask can_attend first"
    output, lse = _FLASH(
        query, key, value, attn_mask=mask, is_causal=scoring.causal, scale=scoring.scale
    )
    output = output.reshape(batch, heads, queries, dim).to(exact_dtype(query))
    lse = lse.reshape(batch, heads, queries)
    if blind is not None:
        lse = lse.masked_fill(blind, -torch.inf)
    return output, lse


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
