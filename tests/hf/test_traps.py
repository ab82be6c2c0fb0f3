"""What transformers does underneath that once went wrong: attention, masks, positions, windows (HF_NOTES section 4).

The traps of generation, training and saving are in test_traps_of_use.py.
"""

from typing import Any

import pytest
import torch
from attached import KEPT, PADDING, WINDOW, attached, starts_of, text
from generation import ENTRY, assert_close
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import longfocus
from families import FAMILIES, Family, family, tiny_model
from oracle import Memory, attention_modules, oracle_logits

every_family = pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def logits(model: PreTrainedModel, length: int = 40, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(text(length)[0], **given).logits


@every_attention
def test_padding_is_masked_because_the_mask_is_registered_with_the_attention(
    attention: str,
) -> None:
    """Trap 1: an attention name without a mask function of its own gets no mask at all."""
    model = attached(ENTRY, attention)
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        assert model.config._attn_implementation in table.valid_keys()
    for length in (WINDOW, 40):
        input_ids, mask = text(length, PADDING[:2])
        before = model(input_ids, attention_mask=mask).logits[1, 5:]
        input_ids[1, :5] = 55
        assert model(input_ids, attention_mask=mask).logits[1, 5:].equal(before)


def test_changing_the_attention_implementation_keeps_the_memory() -> None:
    """Trap 2: set_attn_implementation would put attention without memory, and without rotary, in place."""
    model = attached(ENTRY)
    before = logits(model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "focus_eager"
    assert_close(logits(model), before)
    assert logits(model, WINDOW).equal(logits(tiny_model(ENTRY, "eager"), WINDOW))
    model.set_attn_implementation("sdpa")
    assert logits(model).equal(before)
    longfocus.detach(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["nonsense", "flash_attention_2"])
def test_an_attention_implementation_that_is_not_there_leaves_the_memory_in_place(
    name: str,
) -> None:
    """Trap 2: a failed change must not leave the model between the two."""
    model = attached(ENTRY)
    before = logits(model)
    with pytest.raises((ValueError, ImportError), match="(?i)" + name.split("_")[0]):
        model.set_attn_implementation(name)
    assert logits(model).equal(before)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "gpt_oss"])
def test_eager_attention_is_that_of_the_model_itself(name: str) -> None:
    """Trap 3: transformers' table has no eager attention; every architecture has its own."""
    assert "eager" not in ALL_ATTENTION_FUNCTIONS
    entry = family(name)
    assert logits(attached(entry, "eager"), WINDOW).equal(
        logits(tiny_model(entry, "eager"), WINDOW)
    )


@every_family
def test_it_is_known_which_architectures_drop_unknown_arguments(entry: Family) -> None:
    """Trap 4: StableLM's layers accept what memory attention needs, and drop it on the way down."""
    seen: list[set[str]] = []
    plain = tiny_model(entry)
    for module in attention_modules(plain).values():
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
        )
    plain(text(4)[0], focus_call="spy")
    assert len(seen) == 4
    passes = {"focus_call" in kwargs for kwargs in seen}
    assert passes == {attached(entry).focus.passes_kwargs}
    config = longfocus.FocusConfig(memory_layers=(1, 2), window=WINDOW)
    unverified = longfocus.attach(tiny_model(entry), config, verify=False)
    assert passes == {unverified.focus.passes_kwargs}


@pytest.mark.parametrize("name", ["llama_gqa", "stablelm", "gpt_neox"])
def test_a_memory_layer_that_finds_no_memory_raises(name: str) -> None:
    """Trap 4: a layer that silently ran without its memory would go unnoticed."""
    model = attached(family(name))
    body = getattr(model, model.base_model_prefix)
    with pytest.raises(longfocus.LongFocusError, match="outside of the attached model"):
        body(text(4)[0])


def test_arguments_that_memory_attention_does_not_know_are_refused() -> None:
    """Trap 5: an argument of the attention that is ignored would be silently wrong."""

    def adds_a_bias(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_bias": torch.zeros(1)}

    model = attached(ENTRY)
    attention_modules(model)[1].register_forward_pre_hook(adds_a_bias, with_kwargs=True)
    with pytest.raises(longfocus.LongFocusError, match=r"LlamaAttention.*position_bias"):
        logits(model)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_softcap_and_sinks_belong_to_the_softmax_over_window_and_memory(name: str) -> None:
    """Trap 5: Gemma 2 bounds its scores, gpt-oss has a score that takes attention away."""
    entry = family(name)
    memory = Memory(entry.memory_layers)
    expected = oracle_logits(tiny_model(entry), text(40)[0], starts_of(40), memory)
    assert_close(logits(attached(entry)), expected)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3"])
def test_the_cache_counts_all_tokens_and_its_masks_the_window_only(name: str) -> None:
    """Trap 6: generate slices its inputs by get_seq_length; masks are made from get_mask_sizes."""
    model = attached(family(name))
    cache = model(text(40)[0]).past_key_values
    assert cache.get_seq_length() == 40
    for layer in range(4):
        assert cache.get_seq_length(layer) == 40
        assert cache.get_mask_sizes(3, layer) == (KEPT + 3, 0)
        assert cache.get_query_offset(layer) == KEPT
    assert cache.is_sliding == [False] * 4
    assert not cache.is_compileable


@pytest.mark.parametrize("shift", [1, 1000])
@pytest.mark.parametrize("length", [WINDOW, 40])
def test_only_differences_of_positions_matter(
    model: PreTrainedModel, length: int, shift: int
) -> None:
    """Trap 7: generate numbers positions from the start of the conversation, rotary from the window's."""
    positions = torch.arange(length)[None] + shift
    assert logits(model, length, position_ids=positions).equal(logits(model, length))


def test_padding_that_generate_numbers_0_does_not_move_the_window(model: PreTrainedModel) -> None:
    """Trap 7: position ids of padding are 0, far below those of the real tokens of later windows."""
    input_ids, mask = text(47, (0, 5, 16, 30, 0))
    # between two turns of a shorter row
    mask[4, 27:33] = 0
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    actual = model(input_ids, attention_mask=mask, position_ids=positions).logits
    memory = Memory(ENTRY.memory_layers)
    expected = oracle_logits(
        tiny_model(ENTRY), input_ids, starts_of(47), memory, attention_mask=mask
    )
    assert_close(actual[mask.bool()], expected[mask.bool()])


@every_attention
def test_a_row_that_is_all_padding_gives_no_nan_and_changes_no_other(attention: str) -> None:
    """Trap 8: a softmax over nothing is 0 / 0, and one NaN in the memory spoils every later answer."""
    model = attached(ENTRY, attention)
    input_ids, mask = text(40, (0, 40))
    output = model(input_ids, attention_mask=mask)
    assert output.logits.isfinite().all()
    assert_close(output.logits[:1], logits(model)[:1])
    assert not output.past_key_values.memory_valid(1)[1].any()
    later = torch.nn.functional.pad(mask, (0, 3), value=1)
    again = model(text(3)[0], attention_mask=later, past_key_values=output.past_key_values)
    alone = model(text(3)[0][1:]).logits
    assert_close(again.logits[1:], alone)


def test_left_padding_moves_the_windows_of_a_row(model: PreTrainedModel) -> None:
    """Trap 9: a padded row differs from the same row alone, and equals the row cut at other places."""
    padded, mask = text(40, (0, 7))
    row = padded[1:, 7:]
    together = model(padded, attention_mask=mask).logits[1:, 7:]
    alone = model(row).logits
    assert not together.allclose(alone, atol=0.1)
    starts = [0, *(start - 7 for start in starts_of(40)[1:])]
    memory = Memory(ENTRY.memory_layers)
    assert_close(together, oracle_logits(tiny_model(ENTRY), row, starts, memory))


def test_a_window_leaves_all_layers_before_the_masks_are_made() -> None:
    """Trap 10: one layer that evicted by itself would see a mask made for another window."""
    model = attached(ENTRY)
    cache = longfocus.FocusCache(model)
    seen: list[list[tuple[int, int]]] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda *_: seen.append([(other.start, other.local) for other in cache.layers])
        )
    for tokens in (WINDOW, 1, 1):
        model(text(tokens)[0], past_key_values=cache)
    calls = [seen[call : call + 4] for call in range(0, 12, 4)]
    for call, (start, before, new) in zip(
        calls, [(0, 0, WINDOW), (WINDOW, 0, 1), (WINDOW, 1, 1)], strict=True
    ):
        for layer, layers in enumerate(call):
            done, waiting = (start, before + new), (start, before)
            assert layers == [done] * layer + [waiting] * (4 - layer)


def test_only_the_published_rules_cut_a_short_input(model: PreTrainedModel) -> None:
    """Trap 11: the published code cuts what is longer than last_context_length, even if it fits."""
    plain = logits(tiny_model(ENTRY), WINDOW)
    assert logits(model, WINDOW).equal(plain)
    published = attached(ENTRY, split="longllama")
    starts = [0, WINDOW - KEPT]
    memory = Memory(ENTRY.memory_layers)
    assert_close(
        logits(published, WINDOW),
        oracle_logits(tiny_model(ENTRY), text(WINDOW)[0], starts, memory),
    )
    assert logits(published, KEPT).equal(logits(tiny_model(ENTRY), KEPT))
