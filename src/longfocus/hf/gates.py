"""The learned gates of the Memorizing Transformer (merge="gate"): parameters of the memory layers' attention."""

import torch
from torch import nn
from transformers import PreTrainedModel

from longfocus.hf.attention import GATE
from longfocus.hf.layers import attention_modules


def add_gates(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """One gate logit per query head in the attention module of every memory layer (Memorizing Transformer)."""
    heads = model.config.num_attention_heads
    for layer, module in attention_modules(model).items():
        if layer in layers and not hasattr(module, GATE):
            weight = next(module.parameters())
            gates = torch.zeros(heads, dtype=weight.dtype, device=weight.device)
            module.register_parameter(GATE, nn.Parameter(gates))


def remove_gates(model: PreTrainedModel) -> None:
    for module in attention_modules(model).values():
        if hasattr(module, GATE):
            delattr(module, GATE)
