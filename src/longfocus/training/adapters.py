"""Low-rank adapters (LoRA) around a model, beside weights that may lie in 4 bits (QLoRA), by PEFT and bitsandbytes."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from longfocus.errors import LongFocusError, extra
from longfocus.training.recipe import Recipe


def quantization(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load weights in 4 bits, if the recipe says so."""
    if recipe.quantize is None:
        return {}
    # on CPUs bitsandbytes 0.50 has no gradient through its products and only warns
    if (
        importlib.util.find_spec("bitsandbytes") is None
        or recipe.cpu
        or not torch.cuda.is_available()
    ):
        raise LongFocusError(
            "Weights in 4 bits need the package bitsandbytes and a GPU: pip install 'longfocus[qlora]'. Without them "
            "use --lora-rank alone, which trains the same adapters beside full weights."
        )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": four_bits, "device_map": {"": torch.cuda.current_device()}}


def with_adapters(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    """The model with LoRA adapters on all of its linear layers but the last, or as it is."""
    if recipe.lora_rank is None:
        return model
    with extra("train", "Training with LoRA"):
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    torch.manual_seed(recipe.seed)
    adapters = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with _quiet_peft():
        if recipe.quantize:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        made: Any = get_peft_model(model, adapters)
    return made


def without_adapters(
    model: Any, recipe: Recipe, scratch: Path, full: Callable[[], PreTrainedModel]
) -> PreTrainedModel:
    """The stock model with adapters merged into its weights.

    Merging into weights of 4 bits would round them away, so they are merged into those of `full()`, by way of a folder.
    """
    if recipe.lora_rank is None:
        return model
    if recipe.quantize is None:
        return model.merge_and_unload()
    from peft import PeftModel

    model.save_pretrained(scratch)
    with _quiet_peft():
        whole: Any = PeftModel.from_pretrained(full(), scratch)
    return whole.merge_and_unload()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT asks whether layers are recomputed by the old name: https://github.com/huggingface/peft"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing.", FutureWarning)
        yield
