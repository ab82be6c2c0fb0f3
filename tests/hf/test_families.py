"""Every supported family: a short input is the plain model bit for bit, a long one is the oracle."""

import pytest
import torch
from attached import (
    PADDING,
    WINDOW,
    assert_equals_oracle,
    assert_generates_as_oracle,
    attached,
    text,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, Family, family, tiny_model
from long import mostly_long
from oracle import Memory, attention_modules

every_family = pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)
every_position = pytest.mark.parametrize("positions", ["window_start", "none"])
every_implementation = pytest.mark.parametrize(
    ("entry", "attention"),
    [
        pytest.param(
            e, name, id=f"{e.name}-{name}", marks=[] if name == e.attention[0] else pytest.mark.long
        )
        for e in FAMILIES
        for name in e.attention
    ],
)

# Logits have a standard deviation of about 3.
FLOAT32 = 5e-5
# Norms and softmax of the stock models compute in float32 whatever the type of the weights.
FLOAT64 = 5e-6


def short_logits(model: PreTrainedModel, padding: tuple[int, ...]) -> Tensor:
    """Logits of a text that just fits the window."""
    input_ids, mask = text(WINDOW, padding)
    given = {}
    if any(padding):
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        return model(input_ids=input_ids, **given).logits[mask.bool()]


def without_rotary(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    """The plain model whose given layers get the identity rotation."""

    def identity(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        cos, sin = kwargs["position_embeddings"]
        rotation = (torch.ones_like(cos), torch.zeros_like(sin))
        return args, {**kwargs, "position_embeddings": rotation}

    for layer, module in attention_modules(model).items():
        if layer in layers:
            module.register_forward_pre_hook(identity, with_kwargs=True)
    return model


@pytest.mark.parametrize("padding", [(0, 0), (0, 5)], ids=["full", "padded"])
@every_implementation
def test_short_input_is_bitwise_the_plain_model(
    entry: Family, attention: str, padding: tuple[int, ...]
) -> None:
    plain, model = tiny_model(entry, attention), attached(entry, attention)
    assert short_logits(model, padding).equal(short_logits(plain, padding))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "gpt_neox", "phi3_longrope"])
def test_short_input_in_half_precision_is_bitwise_the_plain_model(
    name: str, dtype: torch.dtype
) -> None:
    entry = family(name)
    plain, model = tiny_model(entry, dtype=dtype), attached(entry, dtype=dtype)
    assert short_logits(model, (0, 5)).equal(short_logits(plain, (0, 5)))


@every_implementation
def test_without_positions_short_input_is_the_plain_model_without_rotary_in_memory_layers(
    entry: Family, attention: str
) -> None:
    plain = without_rotary(tiny_model(entry, attention), entry.memory_layers)
    model = attached(entry, attention, positions="none")
    assert short_logits(model, (0, 5)).equal(short_logits(plain, (0, 5)))


@every_position
@every_implementation
def test_long_padded_input_equals_the_oracle(entry: Family, attention: str, positions: str) -> None:
    model = attached(entry, attention, positions=positions)
    memory = Memory(entry.memory_layers, positions)
    assert_equals_oracle(model, tiny_model(entry), memory, padding=PADDING, tolerance=FLOAT32)


@every_position
@pytest.mark.parametrize("top_k", mostly_long([3, 1000], 3))
@every_family
def test_top_k_of_the_memory_equals_the_oracle(entry: Family, top_k: int, positions: str) -> None:
    model = attached(entry, dtype=torch.float64, positions=positions, search="exact", top_k=top_k)
    plain = tiny_model(entry, dtype=torch.float64)
    memory = Memory(entry.memory_layers, positions, top_k=top_k)
    assert_equals_oracle(model, plain, memory, tolerance=FLOAT64)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox", "gemma3", "gpt_oss"])
def test_true_positions_equal_the_oracle(name: str) -> None:
    entry = family(name)
    model = attached(entry, dtype=torch.float64, positions="true")
    plain = tiny_model(entry, dtype=torch.float64)
    memory = Memory(entry.memory_layers, "true")
    # Angles of global positions are rounded to float32.
    assert_equals_oracle(model, plain, memory, padding=(0,), tolerance=1e-4)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "smollm3"])
def test_gated_memory_equals_the_oracle(name: str) -> None:
    entry = family(name)
    model = attached(entry, merge="gate")
    modules = attention_modules(model)
    gates = {layer: modules[layer].focus_gate for layer in entry.memory_layers}
    for gate in gates.values():
        torch.nn.init.normal_(gate)
    memory = Memory(entry.memory_layers, gates={k: g.detach() for k, g in gates.items()})
    assert_equals_oracle(model, tiny_model(entry), memory, padding=PADDING, tolerance=FLOAT32)


@every_family
def test_greedy_decoding_over_two_evictions_equals_the_oracle(entry: Family) -> None:
    memory = Memory(entry.memory_layers)
    assert_generates_as_oracle(attached(entry), tiny_model(entry), memory, tolerance=FLOAT32)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "gpt_oss"])
def test_greedy_decoding_after_a_long_prompt_equals_the_oracle(name: str) -> None:
    entry = family(name)
    memory = Memory(entry.memory_layers)
    assert_generates_as_oracle(
        attached(entry), tiny_model(entry), memory, prompt=32, padding=(0, 15), tolerance=FLOAT32
    )


@every_family
def test_every_memory_layer_stores_every_evicted_token(entry: Family) -> None:
    model = attached(entry)
    cache = longfocus.FocusCache(model)
    input_ids, _ = text(2 * WINDOW)
    with torch.no_grad():
        model(input_ids=input_ids, past_key_values=cache, use_cache=False)
    assert cache.get_seq_length() == 2 * WINDOW
    for layer in range(model.config.num_hidden_layers):
        assert cache.window_length(layer) == 0
        assert cache.memory_length(layer) == (2 * WINDOW if layer in entry.memory_layers else 0)
