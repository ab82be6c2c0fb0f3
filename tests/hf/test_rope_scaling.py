"""Scaled rotary embeddings are the model's own business and combine with the memory."""

from typing import Any

import pytest
import torch
from attached import (
    PADDING,
    WINDOW,
    assert_equals_oracle,
    assert_generates_as_oracle,
    text,
    with_memory,
)
from transformers import PreTrainedModel

from families import SIZES, YARN, random_model
from oracle import Memory

MEMORY_LAYERS = (1, 3)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    # The text below is longer than the model's positions: local positions must not make it grow.
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "llama3": {"rope_type": "llama3", "factor": 4.0, **LLAMA3},
}

every_scaling = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
every_position = pytest.mark.parametrize("positions", ["window_start", "none"])


def scaled_llama(scaling: dict[str, Any]) -> PreTrainedModel:
    settings = {**SIZES, "rope_parameters": {"rope_theta": 1e4, **scaling}}
    if scaling["rope_type"] == "dynamic":
        settings["max_position_embeddings"] = 32
    return random_model("llama", settings, "sdpa")


@every_scaling
def test_short_input_with_scaled_rotary_is_bitwise_the_plain_model(scaling: dict[str, Any]) -> None:
    plain, model = scaled_llama(scaling), with_memory(scaled_llama(scaling), MEMORY_LAYERS)
    input_ids, _ = text(WINDOW)
    with torch.no_grad():
        assert model(input_ids).logits.equal(plain(input_ids).logits)


@every_position
@every_scaling
def test_long_input_with_scaled_rotary_equals_the_oracle(
    scaling: dict[str, Any], positions: str
) -> None:
    model = with_memory(scaled_llama(scaling), MEMORY_LAYERS, positions=positions)
    memory = Memory(MEMORY_LAYERS, positions)
    assert_equals_oracle(model, scaled_llama(scaling), memory, padding=PADDING, tolerance=5e-5)


@every_scaling
def test_greedy_decoding_with_scaled_rotary_equals_the_oracle(scaling: dict[str, Any]) -> None:
    model = with_memory(scaled_llama(scaling), MEMORY_LAYERS)
    assert_generates_as_oracle(model, scaled_llama(scaling), Memory(MEMORY_LAYERS), tolerance=5e-5)
