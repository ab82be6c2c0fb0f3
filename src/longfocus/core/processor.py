"""What this machine is good at: many processors multiply 16-bit matrices tens of times slower than float32 ones."""

import os
import sys
from functools import cache

import torch

_ASKED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@cache
def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of matrices of this number type are fast on a device: a CPU needs kernels of oneDNN for them.

    For bfloat16 x86 needs AVX-512, ARM its instructions of that name. Elsewhere torch falls back to plain loops.
    """
    if device.type != "cpu":
        return True
    # private operators: a torch that lost them is trusted to be fast
    asked = getattr(torch.ops.mkldnn, _ASKED.get(dtype, ""), None)
    return True if asked is None else bool(asked())


def memory_bytes() -> int:
    """Of the whole machine; more than any has where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return sys.maxsize
