"""Models that cannot carry a memory are refused with the reason, and are afterwards what they were."""

import contextlib
from typing import Any

import pytest
import torch
from attached import with_memory
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import longfocus
from families import SIZES, random_model

FULL, LINEAR = "full_attention", "linear_attention"
EXPERTS = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts": 4,
}
LOW_RANK = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 6,
    "first_k_dense_replace": 4,
    "n_group": 1,
    "topk_group": 1,
}
GATED_DELTA = {
    "layer_types": [LINEAR, FULL, LINEAR, FULL],
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
NO_POSITIONS_WHERE_FULL = {"layer_types": ["sliding_attention"] + [FULL] * 3, "sliding_window": 6}

CAUSAL: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**EXPERTS, **LOW_RANK},
    "qwen3_next": {**EXPERTS, **GATED_DELTA},
    "lfm2": {"layer_types": ["conv", FULL, "conv", FULL]},
    "mamba": {},
    "diffllama": {},
    "mpt": {"d_model": 48, "n_heads": 6, "n_layers": 2},
}


def llava() -> PreTrainedModel:
    sight = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, **sight)
    text = LlamaConfig(**SIZES)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))


def t5() -> PreTrainedModel:
    sizes = {"d_model": 48, "d_kv": 12, "d_ff": 56, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=97, **sizes))


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**{**SIZES, "num_hidden_layers": 2}))


OTHERS = {"llava": llava, "t5": t5, "bert": bert}


def made(kind: str) -> PreTrainedModel:
    if kind in OTHERS:
        return OTHERS[kind]().eval()
    return random_model(kind, {**SIZES, **CAUSAL[kind]}, "eager")


@pytest.mark.parametrize("kind", [*CAUSAL, *OTHERS])
def test_a_model_of_another_kind_is_refused_and_stays(kind: str) -> None:
    model = made(kind)
    stock, config = type(model), model.config.to_dict()
    names = list(model.state_dict())
    with pytest.raises(longfocus.LongFocusError, match=stock.__name__):
        with_memory(model, (1,))
    assert type(model) is stock
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model, "focus")


def test_a_layer_that_does_not_rotate_where_others_do_is_not_taken_for_one_that_does() -> None:
    # Cohere 2 rotates in its sliding layers only; layer 2 is a full one.
    settings = {**SIZES, **NO_POSITIONS_WHERE_FULL, "head_dim": 8, "logit_scale": 1.0}
    model = random_model("cohere2", settings, "sdpa")
    input_ids = torch.randint(3, 97, (1, 9))
    before = model(input_ids).logits
    with contextlib.suppress(longfocus.LongFocusError):
        with_memory(model, (2,))
    assert model(input_ids).logits.equal(before)
