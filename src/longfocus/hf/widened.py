"""Checkpoints of 16-bit numbers on a CPU that is slow with them.

They are loaded in float32, which computes the same tens of times faster there. Their memory is kept in the 16 bits of
the checkpoint, and so is their fingerprint, so that documents can be used on both kinds of machines.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.core.processor import memory_bytes, multiplies

NARROW = (torch.bfloat16, torch.float16)
MOST_OF_MEMORY = 0.5
"""Share of the machine's memory that a model may take in float32; a larger one is left in 16 bits."""

_log = logging.getLogger(__name__)


def narrow_type(config: PreTrainedConfig, device: torch.device | str) -> torch.dtype | None:
    """The 16-bit type of a checkpoint that should be loaded in float32 on `device`; None: load it as it is."""
    saved = config.dtype
    if isinstance(saved, str):
        saved = getattr(torch, saved, None)
    if saved not in NARROW or multiplies(saved, torch.device(device)):
        return None
    if getattr(config, "quantization_config", None) is not None or not _fits(config):
        return None
    _log.info("This processor is slow with %s: the model computes in float32.", saved)
    return saved


def remembering_in(focus: FocusConfig, narrow: torch.dtype | None) -> FocusConfig:
    """With the memory in the checkpoint's numbers, where nothing else is asked for."""
    if narrow is None or focus.memory_dtype is not None:
        return focus
    return replace(focus, memory_dtype=str(narrow).removeprefix("torch."))


def number_type(model: PreTrainedModel) -> torch.dtype:
    """That of the model, or the 16-bit one in which all its weights are the same numbers: it was loaded from these."""
    if model.dtype == torch.float32:
        for narrow in NARROW:
            if all(narrowed(weight, narrow) is not weight for weight in model.parameters()):
                return narrow
    return model.dtype


def narrowed(weight: Tensor, narrow: torch.dtype) -> Tensor:
    """A weight in fewer bits, if it is the same number there, and else as it is."""
    if weight.dtype != torch.float32 or weight.is_meta:
        return weight
    found = weight.detach().to(narrow)
    return found if found.to(weight.dtype).equal(weight) else weight


def _fits(config: PreTrainedConfig) -> bool:
    """Whether the machine can hold the model in float32."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return 4 * model.num_parameters() <= MOST_OF_MEMORY * memory_bytes()
