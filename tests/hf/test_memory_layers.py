"""Where a memory may sit: what layers of special kinds see of the window and of the memory behind it."""

import pytest
import torch
from attached import WINDOW, attached, text, with_memory
from generation import assert_close
from transformers import PreTrainedModel

import longfocus
from families import SIZES, Family, family, random_model

SLIDING = 7


def one_layer(sliding_window: int | None) -> PreTrainedModel:
    """One layer, so that a token reaches others through its attention only."""
    settings = {**SIZES, "num_hidden_layers": 1, "sliding_window": sliding_window}
    model = random_model("mistral", settings, "sdpa")
    return with_memory(model, (0,), last_context_length=WINDOW)


@pytest.mark.parametrize("token", [2, WINDOW + 2])
@pytest.mark.parametrize("sliding_window", [None, SLIDING])
def test_a_token_out_of_reach_of_a_sliding_layer_returns_when_its_window_is_evicted(
    sliding_window: int | None, token: int
) -> None:
    model = one_layer(sliding_window)
    input_ids = text(3 * WINDOW, (0,))[0]
    changed = input_ids.clone()
    changed[0, token] = 55
    cache, other = longfocus.FocusCache(model), longfocus.FocusCache(model)
    seen = []
    for part in range(0, 3 * WINDOW, WINDOW):
        window = slice(part, part + WINDOW)
        logits = model(input_ids[:, window], past_key_values=cache).logits
        difference = model(changed[:, window], past_key_values=other).logits - logits
        seen += (difference.abs().amax(-1)[0] > 1e-4).tolist()
    end = token - token % WINDOW + WINDOW
    reach = min(token + (sliding_window or WINDOW), end)
    assert seen == [token <= t < reach or t >= end for t in range(3 * WINDOW)]


@pytest.mark.parametrize("positions", ["none", "true"])
def test_on_a_layer_without_positions_every_setting_is_the_same(positions: str) -> None:
    smollm3 = family("smollm3")
    without = Family(smollm3.name, smollm3.model_type, smollm3.settings, (1,))
    input_ids, mask = text(40, (0, 5))
    assert not attached(without).model.layers[1].self_attn.use_rope
    expected = attached(without)(input_ids, attention_mask=mask).logits
    actual = attached(without, positions=positions)(input_ids, attention_mask=mask).logits
    assert_close(actual[mask.bool()], expected[mask.bool()])


def test_on_a_layer_with_positions_the_settings_differ() -> None:
    smollm3 = family("smollm3")
    with_rotary = Family(smollm3.name, smollm3.model_type, smollm3.settings, (2,))
    logits = [
        attached(with_rotary, positions=positions)(text(40)[0]).logits
        for positions in ("window_start", "none", "true")
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not logits[one].allclose(logits[other], atol=0.1)


def test_without_memory_layers_windows_are_independent_contexts() -> None:
    model = attached(Family("llama", "llama", {}, ()))
    input_ids = text(2 * WINDOW + 5, (0,))[0]
    whole = model(input_ids).logits
    apart = [model(part).logits for part in input_ids.split(WINDOW, 1)]
    assert_close(whole, torch.cat(apart, 1))
