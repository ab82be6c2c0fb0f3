"""What transformers does underneath that once went wrong: generation, training, saving (HF_NOTES section 4).

The traps of attention, masks, positions and windows are in test_traps.py.
"""

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import KEPT, PADDING, WINDOW, attached, text
from generation import ENTRY, GREEDY, assert_close, prompt
from training_steps import recompute, training_batch
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin

import longfocus
from families import FAMILIES, tiny_model
from longfocus.hf.model import FocusMixin
from oracle import attention_modules


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def test_a_long_prompt_needs_no_prefill_chunks_and_they_are_refused(
    model: PreTrainedModel,
) -> None:
    """Trap 12: chunks of another size than the windows would move the windows' edges."""
    with pytest.raises(longfocus.LongFocusError, match="window by window"):
        model.generate(**prompt(60), **GREEDY, max_new_tokens=2, prefill_chunk_size=8)
    output = model.generate(**prompt(60), **GREEDY, max_new_tokens=2)
    assert output.past_key_values.memory_length(1) == 60 - KEPT


@pytest.mark.parametrize("repeats", [3, 8])
def test_guesses_that_come_with_the_prompt_do_not_count_as_prompt(
    model: PreTrainedModel, repeats: int
) -> None:
    """Trap 13: assisted decoding sends the prompt and its first guesses in one call."""
    given = {"input_ids": text(4, (0,))[0].repeat(1, repeats), **GREEDY, "max_new_tokens": 8}
    calls = []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assisted = model.generate(**given, prompt_lookup_num_tokens=6)
    handle.remove()
    assert sum(calls) > 4 * repeats + 7
    greedy = model.generate(**given)
    assert assisted.sequences.equal(greedy.sequences)
    assert_close(torch.stack(assisted.logits), torch.stack(greedy.logits))
    for layer in range(4):
        for length in ("window_length", "memory_length"):
            lengths = [getattr(o.past_key_values, length)(layer) for o in (assisted, greedy)]
            assert lengths[0] == lengths[1]


def test_guesses_that_pushed_the_window_out_can_be_taken_back(model: PreTrainedModel) -> None:
    """Trap 13: refused guesses must give the evicted window back."""
    cache = longfocus.FocusCache(model)
    model(text(WINDOW - 2, (0,))[0], past_key_values=cache)
    for token in text(6, (0,))[0].split(1, 1):
        model(token, past_key_values=cache)
    assert (cache.window_length(), cache.memory_length(1)) == (4, WINDOW)
    cache.crop(-5)
    assert (cache.window_length(), cache.memory_length(1)) == (WINDOW - 1, 0)


def test_rows_that_generate_repeats_before_reading_share_their_memory(
    model: PreTrainedModel,
) -> None:
    """Trap 14: beams are made before the prompt is read, so they would store it once each."""
    cache = longfocus.FocusCache(model)
    input_ids, mask = text(60, PADDING)
    with torch.no_grad():
        model(
            input_ids.repeat_interleave(4, 0),
            attention_mask=mask.repeat_interleave(4, 0),
            past_key_values=cache,
        )
    for layer in ENTRY.memory_layers:
        (part,) = cache.layers[layer].store.parts()
        assert part.key.shape[0] == 3
        assert part.rows == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_layers_that_are_recomputed_lose_their_cache_but_not_their_plan(
    use_reentrant: bool,
) -> None:
    """Trap 15: gradient checkpointing sets the cache of a layer to None, silently."""
    seen = []
    plain = recompute(tiny_model(ENTRY).train(), use_reentrant=use_reentrant)
    attention_modules(plain)[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["past_key_values"]), with_kwargs=True
    )
    plain(text(4)[0], past_key_values=DynamicCache())
    assert seen == [None]
    model = recompute(attached(ENTRY).train(), use_reentrant=use_reentrant)
    batch, plan = training_batch(), longfocus.paper_plan(3, d=2)
    alone = model(**batch).logits
    assert not model(**batch, additional_contexts=plan).logits[3:].allclose(alone[3:], atol=0.1)
    with pytest.raises(longfocus.LongFocusError, match="checkpointing"):
        model(text(40)[0])


def test_a_later_window_gives_gradients_to_what_it_remembers() -> None:
    """Trap 16: with gradients on, the memory keeps its graph, as the published code does."""
    model = attached(ENTRY)
    input_ids = text(40, (0,))[0]
    embeddings = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    labels = input_ids.clone()
    labels[:, :-1] = -100
    model(inputs_embeds=embeddings, labels=labels).loss.backward()
    assert (embeddings.grad.abs().sum(-1) > 0).tolist() == [[True] * 39 + [False]]
    with torch.no_grad():
        cache = model(input_ids).past_key_values
    assert not cache.memory_keys(1).requires_grad


def test_a_model_that_accelerate_has_wrapped_is_refused() -> None:
    """Trap 17: accelerate's forward on the instance would go past the memory."""
    hooks = pytest.importorskip("accelerate.hooks")
    plain = tiny_model(ENTRY)
    hooks.add_hook_to_module(plain, hooks.ModelHook())
    with pytest.raises(longfocus.LongFocusError, match="accelerate"):
        longfocus.attach(plain, longfocus.FocusConfig(memory_layers=(1,), window=WINDOW))
    model = attached(ENTRY)
    expected = model(text(40)[0]).logits
    hooks.add_hook_to_module(model, hooks.ModelHook())
    assert model(text(40)[0]).logits.equal(expected)


def test_no_private_method_of_generate_is_overridden(model: PreTrainedModel) -> None:
    """Trap 18: private methods change with every release."""
    own = {name for name in vars(FocusMixin) if name.startswith("_") and not name.endswith("__")}
    for entry in FAMILIES:
        stock = type(tiny_model(entry))
        assert not {name for name in own if hasattr(stock, name)} - {"_abc_impl"}
    public = {name for name in vars(FocusMixin) if hasattr(GenerationMixin, name)}
    assert {name for name in public if not name.startswith("_")} == {
        "generate",
        "generate_batch",
        "init_continuous_batching",
        "continuous_batching_context_manager",
    }


def test_generate_takes_the_cache_from_the_output_and_new_arguments_from_the_signature(
    model: PreTrainedModel,
) -> None:
    """Trap 18: generate makes an empty DynamicCache, and refuses arguments that forward does not name."""
    parameters = inspect.signature(model.forward).parameters
    for name in ("last_context_length", "additional_contexts", "logits_to_keep", "attention_mask"):
        assert name in parameters
    given = DynamicCache(config=model.config)
    output = model.generate(**prompt(30), **GREEDY, max_new_tokens=3, past_key_values=given)
    assert isinstance(output.past_key_values, longfocus.FocusCache)
    assert given.get_seq_length() == 0
    with pytest.raises(ValueError, match="last_context_lenght"):
        model.generate(**prompt(30), **GREEDY, max_new_tokens=3, last_context_lenght=3)


def test_a_saved_model_keeps_the_stock_name_and_no_attention_of_ours(tmp_path: Path) -> None:
    """Trap 19: save_pretrained writes the class name, and others must be able to load it."""
    model = attached(ENTRY)
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["architectures"] == ["LlamaForCausalLM"]
    assert told["model_type"] == "llama"
    assert longfocus.FocusConfig.from_dict(told["focus"]) == model.focus.config
    assert "focus_sdpa" not in json.dumps(told)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_the_class_that_is_made_on_demand_can_be_copied_and_pickled(
    model: PreTrainedModel, copied: Any
) -> None:
    """Trap 19: a class that no module holds cannot be pickled by its name."""
    twin = copied(model)
    assert type(twin) is type(model)
    assert twin(text(40)[0]).logits.equal(model(text(40)[0]).logits)


def test_hidden_states_are_those_of_all_windows(model: PreTrainedModel) -> None:
    """Trap 20: every window has an output of its own."""
    output = model(text(40)[0], output_hidden_states=True)
    assert [states.shape for states in output.hidden_states] == [(2, 40, 48)] * 5
    assert model.lm_head(output.hidden_states[-1]).equal(output.logits)
    embeddings = model.get_input_embeddings()(text(40)[0])
    assert output.hidden_states[0].equal(embeddings)
    last = model(text(40)[0], output_hidden_states=True, logits_to_keep=1)
    assert all(map(torch.equal, last.hidden_states, output.hidden_states))


@pytest.mark.parametrize("kept", [1, torch.tensor([0, 17, 39])], ids=str)
def test_the_logits_that_are_asked_for_may_lie_in_any_window(
    model: PreTrainedModel, kept: int | torch.Tensor
) -> None:
    """Trap 20: logits_to_keep counts in the whole input, not in the last window."""
    wanted = slice(-kept, None) if isinstance(kept, int) else kept
    everything = model(text(40)[0]).logits
    assert_close(model(text(40)[0], logits_to_keep=kept).logits, everything[:, wanted])


def test_generation_without_an_end_token_does_not_end(model: PreTrainedModel) -> None:
    """Trap 21: eos_token_id=None is honoured, so comparisons must set it."""
    given = prompt(20)
    free = model.generate(**given, **GREEDY, max_new_tokens=12)
    model.generation_config.eos_token_id = int(free.sequences[0, 22])
    try:
        ended = model.generate(**given, do_sample=False, pad_token_id=0, max_new_tokens=12)
        unended = model.generate(**given, **GREEDY, max_new_tokens=12)
    finally:
        model.generation_config.eos_token_id = 2
    assert ended.shape[1] < free.sequences.shape[1]
    assert unended.sequences.equal(free.sequences)


def test_rows_change_places_also_when_the_window_is_empty(model: PreTrainedModel) -> None:
    """Trap 22: stock layers reorder only if they hold keys, and a memory may stand behind none."""
    input_ids, mask = text(40, PADDING)
    follow = torch.nn.functional.pad(mask, (0, 4), value=1)
    more = text(4, (0,) * 3)[0]
    results = []
    for is_reordered in (False, True):
        cache = longfocus.FocusCache(model)
        model(input_ids, attention_mask=mask, past_key_values=cache, use_cache=False)
        assert cache.window_length() == 0
        rows = [2, 0, 1] if is_reordered else [0, 1, 2]
        if is_reordered:
            cache.reorder_cache(torch.tensor(rows))
        logits = model(more[rows], attention_mask=follow[rows], past_key_values=cache).logits
        results.append(logits)
    assert_close(results[1], results[0][[2, 0, 1]])
