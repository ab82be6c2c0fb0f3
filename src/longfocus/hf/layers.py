"""Where things are in a stock model: its attention modules, its vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from longfocus.errors import LongFocusError


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The self-attention module of every decoder layer, by layer number."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        # layer_idx is what transformers calls it in every architecture with a cache
        layer = getattr(module, "layer_idx", None)
        if type(module).__name__.endswith("Attention") and isinstance(layer, int):
            found[layer] = module
    return found


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding, which may be more than the tokenizer has tokens."""
    # peft wraps the embedding, but leaves it its weight
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def longest_window(config: Any) -> int | None:
    """How far a model's positions reach, with dynamic scaling as far as that is meant to stretch; None: any length."""
    longest = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    if longest is not None and scaling.get("rope_type") == "dynamic":
        return int(longest * scaling["factor"])
    return longest


def learned_positions(model: Any) -> int | None:
    """Rows of a table of positions, beyond which nothing can stand, as in GPT-2; None if places are computed."""
    longest = getattr(model.config, "max_position_embeddings", None)
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    # OPT has two rows more than positions
    is_there = longest is not None and any(
        longest <= own.num_embeddings <= longest + 2 for own in tables
    )
    return longest if is_there else None


def kv_heads_and_dim(config: Any) -> tuple[int, int]:
    """Number and size of the key heads of a stock configuration, which may leave both to be derived."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """In eval mode; every module's own mode is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def model_inside(wrapped: nn.Module) -> PreTrainedModel:
    """The transformers model inside the wrappers of a trainer (DDP, PEFT); it may be the model itself."""
    for module in wrapped.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise LongFocusError(
        f"Training needs a transformers model, bare or wrapped. Got {type(wrapped).__name__}, which holds none. "
        "See AutoModelForCausalLM."
    )
