"""What windows and memory cannot do is refused with a message that says what to do, and the model works on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import attached, text
from generation import ENTRY, GREEDY, prompt
from training_steps import recompute
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

import longfocus
from families import tiny_model

LOOKUP = {"prompt_lookup_num_tokens": 3}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


@pytest.fixture(scope="module")
def published() -> PreTrainedModel:
    return attached(ENTRY, split="longllama")


def greedy(model: PreTrainedModel, **more: Any) -> torch.Tensor:
    return model.generate(
        **prompt(20), do_sample=False, eos_token_id=None, max_new_tokens=4, **more
    )


WAYS_TO_ASK: dict[str, Callable[[PreTrainedModel, dict[str, Any]], Any]] = {
    "argument": lambda model, asked: greedy(model, **asked),
    "config argument": lambda model, asked: greedy(
        model, generation_config=GenerationConfig(**asked)
    ),
    "positional config": lambda model, asked: model.generate(
        prompt(20)["input_ids"], GenerationConfig(**asked), max_new_tokens=4
    ),
}


@pytest.mark.parametrize("ask", WAYS_TO_ASK.values(), ids=WAYS_TO_ASK)
@pytest.mark.parametrize(
    "asked",
    [
        {"prefill_chunk_size": 8},
        *({"cache_implementation": name} for name in ("static", "offloaded", "quantized", "paged")),
    ],
    ids=str,
)
def test_what_has_no_windows_is_refused_however_it_is_asked_for(
    model: PreTrainedModel, asked: dict[str, Any], ask: Callable
) -> None:
    expected = greedy(model)
    with pytest.raises(longfocus.LongFocusError, match=f"(?s){next(iter(asked))}.*Leave it out"):
        ask(model, asked)
    assert greedy(model).equal(expected)


def test_what_the_model_was_configured_to_do_is_refused_too() -> None:
    model = attached(ENTRY)
    model.generation_config.prefill_chunk_size = 8
    with pytest.raises(longfocus.LongFocusError, match="prefill_chunk_size"):
        greedy(model)
    with pytest.raises(longfocus.LongFocusError, match="prefill_chunk_size"):
        greedy(model, generation_config=GenerationConfig(num_beams=2))


def foreign_caches() -> dict[str, Any]:
    plain = tiny_model(ENTRY)
    used = DynamicCache()
    plain(**prompt(5), past_key_values=used)
    return {
        "a DynamicCache that is not empty": used,
        "a StaticCache": StaticCache(plain.config, max_cache_len=64),
        "an offloaded cache": DynamicCache(config=plain.config, offloading=True),
        "a tuple": ((torch.zeros(1), torch.zeros(1)),),
    }


@pytest.mark.parametrize("kind", foreign_caches())
def test_a_foreign_cache_is_refused_and_not_touched(model: PreTrainedModel, kind: str) -> None:
    cache = foreign_caches()[kind]
    with pytest.raises(longfocus.LongFocusError, match="FocusCache"):
        model(**prompt(8), past_key_values=cache)
    if kind != "a tuple":
        assert cache.get_seq_length() == (5 if "not empty" in kind else 0)
        with pytest.raises(longfocus.LongFocusError, match="FocusCache"):
            greedy(model, past_key_values=cache)


def test_an_empty_cache_of_generate_is_replaced_by_one_with_memory(model: PreTrainedModel) -> None:
    output = model(**prompt(20), past_key_values=DynamicCache(config=model.config))
    assert isinstance(output.past_key_values, longfocus.FocusCache)
    assert output.past_key_values.memory_length(1) == 15


def test_a_cache_of_a_model_with_other_memory_layers_is_refused(model: PreTrainedModel) -> None:
    other = attached(type(ENTRY)(ENTRY.name, ENTRY.model_type, ENTRY.settings, (2,)))
    with pytest.raises(longfocus.LongFocusError, match=r"\(2,\).*\(1, 3\)"):
        greedy(model, past_key_values=longfocus.FocusCache(other))


def test_a_cache_with_another_number_of_rows_is_refused_and_stays(model: PreTrainedModel) -> None:
    cache = longfocus.FocusCache(model)
    model(**prompt(20), past_key_values=cache)
    with pytest.raises(longfocus.LongFocusError, match=r"1 rows.* 2"):
        model(text(4)[0], past_key_values=cache)
    assert (cache.get_seq_length(), cache.window_length(), cache.rows) == (20, 5, 1)


def test_continuous_batching_is_refused_at_every_door(model: PreTrainedModel) -> None:
    doors = [
        lambda: model.generate_batch([[5, 6, 7]]),
        model.init_continuous_batching,
        lambda: model.continuous_batching_context_manager().__enter__(),
        lambda: model.set_attn_implementation("paged|sdpa"),
    ]
    for door in doors:
        with pytest.raises(
            longfocus.LongFocusError, match=r"padded batch|cannot use the attention"
        ):
            door()
    assert greedy(model).shape == (1, 24)


@pytest.mark.parametrize("ask", WAYS_TO_ASK.values(), ids=WAYS_TO_ASK)
def test_assisted_decoding_under_the_published_rules_is_refused(
    published: PreTrainedModel, ask: Callable
) -> None:
    with pytest.raises(longfocus.LongFocusError, match="when_needed"):
        ask(published, LOOKUP)


def test_an_assistant_under_the_published_rules_is_refused(published: PreTrainedModel) -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"assistant_model.*when_needed"):
        greedy(published, assistant_model=tiny_model(ENTRY))


def test_assisted_decoding_from_a_conversation_is_refused_and_the_conversation_stays(
    model: PreTrainedModel,
) -> None:
    output = model.generate(**prompt(20), **GREEDY, max_new_tokens=4)
    cache, whole = output.past_key_values, torch.cat([output.sequences, text(5, (0,))[0]], 1)
    with pytest.raises(longfocus.LongFocusError, match="conversation"):
        model.generate(whole, past_key_values=cache, **GREEDY, **LOOKUP, max_new_tokens=4)
    assert cache.get_seq_length() == 23
    model.generate(whole, past_key_values=cache, **GREEDY, max_new_tokens=4)
    assert cache.get_seq_length() == 32


def test_a_model_that_guesses_with_its_own_first_layers_is_refused_unchanged(
    model: PreTrainedModel,
) -> None:
    expected = greedy(model)
    with pytest.raises(longfocus.LongFocusError, match="assistant_early_exit"):
        greedy(model, assistant_early_exit=2)
    assert model.config.num_hidden_layers == 4
    assert greedy(model).equal(expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_windows_under_gradient_checkpointing_are_refused(reentrant: bool) -> None:
    model = recompute(attached(ENTRY).train(), use_reentrant=reentrant)
    input_ids, _ = text(30)
    with pytest.raises(longfocus.LongFocusError, match="additional_contexts"):
        model(input_ids, labels=input_ids)
    with pytest.raises(longfocus.LongFocusError, match="additional_contexts"):
        model(input_ids[:, :5], past_key_values=longfocus.FocusCache(model))
    # One window needs no cache, and evaluation recomputes nothing.
    assert model(input_ids[:, :9], labels=input_ids[:, :9]).loss.isfinite()
    assert model.eval()(input_ids).past_key_values.memory_length(1) == 25


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(1, 1, 20, 20), {"full_attention": torch.zeros(1, 1, 20, 20)}],
    ids=["4 dimensions", "a dict"],
)
def test_prepared_masks_are_refused(model: PreTrainedModel, mask: Any) -> None:
    with pytest.raises(longfocus.LongFocusError, match="2-dimensional"):
        model(prompt(20)["input_ids"], attention_mask=mask)


def test_attention_weights_are_refused_where_memory_layers_have_none_to_give() -> None:
    model = attached(ENTRY, "eager")
    with pytest.raises(longfocus.LongFocusError, match="output_attentions"):
        model(**prompt(20), output_attentions=True)
    # without a memory to look into they are the plain model's
    expected = tiny_model(ENTRY, "eager")(**prompt(8), output_attentions=True).attentions
    actual = model(**prompt(8), output_attentions=True).attentions
    assert len(actual) == 4
    assert all(a.equal(b) for a, b in zip(actual, expected, strict=True))
