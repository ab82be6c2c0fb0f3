"""Sharper memory layers: their scores times a factor, in the weights, so that the model stays what it was.

A softmax that was trained among some thousand keys is too soft for a million: the right key stands out, and all others
together outweigh it. The paper's small models learn a temperature; in stock models it lives in q_norm and k_norm,
or in the projections.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longfocus.errors import LongFocusError
from longfocus.hf.layers import attention_modules


@torch.no_grad()
def sharpen(model: PreTrainedModel, factor: float) -> None:
    """Multiply the scores of all memory layers of an attached model by `factor`, in place: in q_norm, else in q_proj.

    The local window is sharpened with the memory: they share one softmax. Raises LongFocusError, and changes nothing,
    if a memory layer has neither.
    """
    if factor == 1:
        return
    attached: Any = model
    modules = attention_modules(model)
    layers = attached.focus.config.memory_layers
    found = [_scaling_module(modules[layer], layer) for layer in layers]
    for module in found:
        _scale(module, factor)


def _scaling_module(attention: nn.Module, layer: int) -> nn.Module:
    # architectures have one, the other or neither
    norm, projection = (getattr(attention, name, None) for name in ("q_norm", "q_proj"))
    if norm is not None and getattr(norm, "weight", None) is not None:
        return norm
    if norm is None and isinstance(projection, nn.Linear):
        return projection
    raise LongFocusError(
        f"Memory layer {layer} ({type(attention).__name__}) has neither q_norm with weights nor q_proj of its own, so "
        "its scores cannot be sharpened: --sharpen needs one of them. Leave it out."
    )


def _scale(module: nn.Module, factor: float) -> None:
    weight: Any = module.weight
    if isinstance(module, nn.Linear):
        weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor)
        return
    # some norms multiply by their weight, some by one more than it
    probe = torch.linspace(-1, 1, weight.numel()).view_as(weight).to(weight)
    before = module(probe).float()
    weight.mul_(factor)
    if not torch.allclose(module(probe).float(), before * factor, rtol=0.02):
        weight.add_(factor - 1)
