"""Tiny random models of every family that LongFocus supports, and of some that it refuses.

Adding a family adds one entry to `FAMILIES`; every test of tests/hf/test_families.py then runs over it.
Weights are large enough for peaked attention, so a wrong mask, position or scale changes logits by about 1.
"""

import copy
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SLIDING, FULL = "sliding_attention", "full_attention"
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 3}
# Scales attention by 1.139 at every position, also at the first of a window.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """One tiny configuration and the layers that carry memory in its tests."""

    name: str
    model_type: str
    settings: dict[str, Any]
    memory_layers: tuple[int, ...] = (1, 3)
    attention: tuple[str, ...] = ("sdpa", "eager")
    """Implementations that compute what the architecture means; Gemma 2 and gpt-oss need eager."""


FAMILIES = [
    Family("llama", "llama", {"num_key_value_heads": 6}),
    Family("llama_gqa", "llama", {"head_dim": 10, "attention_bias": True}),
    Family("mistral", "mistral", {"sliding_window": None}, memory_layers=(0, 2)),
    Family("mistral_sliding", "mistral", {"sliding_window": 7}),
    Family("qwen2", "qwen2", {}, memory_layers=(2,)),
    Family(
        "qwen2_sliding",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    Family("qwen3", "qwen3", {"head_dim": 10}),
    Family(
        "phi3", "phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
    ),
    Family("phi3_longrope", "phi3", {"rope_scaling": "longrope"}),
    Family(
        "gemma2",
        "gemma2",
        {
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, FULL, SLIDING],
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 20.0,
        },
        attention=("eager",),
    ),
    Family(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
            },
        },
        memory_layers=(1, 2),
    ),
    Family(
        "gpt_neox",
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    Family("olmo2", "olmo2", {}),
    Family("smollm3", "smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
    Family(
        "granite",
        "granite",
        {"attention_multiplier": 0.4, "embedding_multiplier": 2.0, "logits_scaling": 0.7},
    ),
    Family(
        "stablelm",
        "stablelm",
        {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": True},
    ),
    Family("cohere", "cohere", {"use_qk_norm": True, "logit_scale": 1.0}),
    Family("mixtral", "mixtral", EXPERTS),
    Family(
        "qwen3_moe",
        "qwen3_moe",
        {"head_dim": 10, "num_experts": 3, **EXPERTS, "moe_intermediate_size": 24},
    ),
    Family(
        "gpt_oss",
        "gpt_oss",
        {
            "head_dim": 10,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, FULL, SLIDING],
            "rope_parameters": {**YARN, "truncate": False},
            **EXPERTS,
        },
        attention=("eager",),
    ),
]

REFUSED = {
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "bloom": {"n_layer": 2, "n_head": 6},
    "gptj": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 56, "num_local_experts": 2},
}


def family(name: str) -> Family:
    return next(entry for entry in FAMILIES if entry.name == name)


def tiny_model(
    entry: Family, attention: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The family's random model in eval mode: the same weights at every call, also in another dtype."""
    settings = {**SIZES, **entry.settings}
    if settings.pop("rope_scaling", None) == "longrope":
        settings |= longrope(head_dim=8)
    return random_model(entry.model_type, settings, attention or entry.attention[0], dtype)


def longrope(head_dim: int) -> dict[str, Any]:
    """Short and long factors, and a scale of attention other than 1; windows stay below the original length."""
    factors = [1.0 + 0.3 * i for i in range(head_dim // 2)]
    rope = {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": factors,
        "long_factor": [2 * f for f in factors],
    }
    return {
        "original_max_position_embeddings": 64,
        "rope_parameters": {**rope, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    }


def refused_model(model_type: str) -> PreTrainedModel:
    """A tiny model of an architecture that cannot have a memory."""
    return random_model(
        model_type, {**SIZES, "num_hidden_layers": 2, **REFUSED[model_type]}, "eager", torch.float32
    )


def random_model(
    model_type: str, settings: dict[str, Any], attention: str, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    return copy.deepcopy(_random_model(model_type, json.dumps(settings), attention, dtype))


@cache
def _random_model(
    model_type: str, settings: str, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    """Made once: a copy takes a tenth of the time. Draws no number that a test would draw."""
    # The default implementation of experts does not know float64.
    config = AutoConfig.for_model(
        model_type, **json.loads(settings), experts_implementation="eager"
    )
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    fill_with_peaked_weights(model)
    return model.to(dtype).eval()


@torch.no_grad()
def fill_with_peaked_weights(model: PreTrainedModel) -> None:
    """Random weights: attention scores spread by about 2 to 4, logits by about 3, norms and biases not neutral."""
    generator = torch.Generator().manual_seed(1234)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            # Gemma's norms multiply by 1 + weight, so their weights are centred on 0.
            center = 0.0 if "gemma" in model.config.model_type else 1.0
            is_of_queries = "q_norm" in name or "q_layernorm" in name
            parameter.copy_((center + 0.2 * noise) * (1.5 if is_of_queries else 1.0))
        elif parameter.ndim == 1:
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * gain(name) / math.sqrt(fan_in(model, name, parameter)))


def gain(name: str) -> float:
    """How much larger than neutral a matrix is: embeddings are 1 per element, queries and keys are peaked."""
    if "embed" in name:
        return math.sqrt(SIZES["hidden_size"])
    if any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value")):
        return 1.5
    if "lm_head" in name or "embed_out" in name:
        return 3.0
    return 1.0


def fan_in(model: PreTrainedModel, name: str, parameter: Tensor) -> int:
    """Inputs of a matrix; gpt-oss keeps its experts transposed, as [experts, inputs, outputs]."""
    experts_are_transposed = (
        model.config.model_type == "gpt_oss" and "experts" in name and parameter.ndim == 3
    )
    return parameter.shape[-2] if experts_are_transposed else parameter.shape[-1]
