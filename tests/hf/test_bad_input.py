"""Bad input gets an error that says what is wrong, what was got, what is allowed, and what to do; nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import WINDOW, attached, text
from generation import ENTRY
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

import longfocus
from families import tiny_model
from longfocus import FocusConfig, LongFocusError

Action = Callable[[PreTrainedModel, Any], Any]
IDS, _ = text(4, (0,))
WHOLE = torch.cat([text(20, (0,))[0], IDS], 1)


def other(**settings: Any) -> FocusConfig:
    return FocusConfig(**{"memory_layers": (1,), "window": WINDOW, **settings})


def mask(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.long)


# Parts of every message: what is wrong, what was got, what is allowed or to be done.
SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "window of one token": ({"window": 1}, ["window", "Got 1", "at least 2"]),
    "window that is no number": ({"window": "13"}, ["window", "'13'", "whole number"]),
    "no top k": ({"top_k": 0}, ["top_k", "Got 0", "at least 1"]),
    "nothing kept": ({"last_context_length": 0}, ["last_context_length", "Got 0", "at least 1"]),
    "unknown positions": ({"positions": "moon"}, ["positions", "'moon'", "'window_start', 'none'"]),
    "unknown search": ({"search": "magic"}, ["search", "'magic'", "'dense', 'exact'"]),
    "unknown merge": ({"merge": "sum"}, ["merge", "'sum'", "'joint', 'gate'"]),
    "unknown split": ({"split": "never"}, ["split", "'never'", "'when_needed', 'longllama'"]),
    "unknown type": ({"memory_dtype": "int4"}, ["memory_dtype", "'int4'", "'bfloat16'"]),
    "a torch type": ({"memory_dtype": torch.bfloat16}, ["memory_dtype", "bfloat16", "Allowed"]),
    "one layer, not a tuple": ({"memory_layers": 3}, ["memory_layers", "Got 3", "(8, 16, 24)"]),
    "layers that are no numbers": ({"memory_layers": ("a",)}, ["memory_layers", "'a'", "numbers"]),
    "layers between layers": ({"memory_layers": (1.5,)}, ["memory_layers", "1.5", "numbers"]),
}


@pytest.mark.parametrize(("settings", "parts"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_cannot_be_meant_is_refused(
    settings: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(LongFocusError) as error:
        other(**settings)
    assert_says(error.value, parts)


ATTACHING: dict[str, tuple[Action, list[str]]] = {
    "layers that do not exist": (
        lambda plain, _: longfocus.attach(plain, other(memory_layers=(1, 7))),
        ["memory_layers=(1, 7)", "4 layers (0..3)", "[7]", "Pick"],
    ),
    "a negative layer": (
        lambda plain, _: longfocus.attach(plain, other(memory_layers=(-1,))),
        ["(-1,)", "0..3", "Pick"],
    ),
    "a window longer than the positions": (
        lambda plain, _: longfocus.attach(plain, other(window=300)),
        ["window=300", "256", "Pick"],
    ),
    "a second memory": (
        lambda _, model: longfocus.attach(model, other()),
        ["LlamaForCausalLM", "already", "longfocus.detach"],
    ),
    "detaching nothing": (
        lambda plain, _: longfocus.detach(plain),
        ["LlamaForCausalLM", "no memory", "longfocus.attach"],
    ),
    "a model without a head": (
        lambda *_: longfocus.attach(
            LlamaModel(
                LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=9)
            ),
            other(),
        ),
        ["LlamaModel", "AutoModelForCausalLM"],
    ),
    "something that is no model": (
        lambda *_: longfocus.attach(nn.Linear(2, 2), other()),
        ["Linear", "AutoModelForCausalLM"],
    ),
    "a name instead of a model": (
        lambda *_: longfocus.attach("llama", other()),
        ["str", "AutoModelForCausalLM"],
    ),
    "a dictionary instead of a config": (
        lambda plain, _: longfocus.attach(plain, {"memory_layers": (1,), "window": 13}),
        ["dict", "FocusConfig"],
    ),
    "a cache of a plain model": (
        lambda plain, _: longfocus.FocusCache(plain),
        ["LlamaForCausalLM", "longfocus.attach"],
    ),
    "reading with a plain model": (
        lambda plain, _: longfocus.read_document(plain, None, IDS[0]),
        ["LlamaForCausalLM", "longfocus.attach"],
    ),
}

CALLING: dict[str, tuple[Action, list[str]]] = {
    "nothing": (lambda model, cache: model(past_key_values=cache), ["input_ids", "inputs_embeds"]),
    "ids and embeddings": (
        lambda model, cache: model(IDS, inputs_embeds=torch.zeros(1, 4, 48), past_key_values=cache),
        ["one of input_ids and inputs_embeds"],
    ),
    "an empty text": (
        lambda model, cache: model(IDS[:, :0], past_key_values=cache),
        ["at least one token", "(1, 0)", "[batch, tokens]"],
    ),
    "ids without rows": (
        lambda model, cache: model(IDS[0], past_key_values=cache),
        ["[batch, tokens]", "(4,)"],
    ),
    "ids above the vocabulary": (
        lambda model, cache: model(IDS + 97, past_key_values=cache),
        ["0..96", "tokenizer", str(int(IDS.max()) + 97)],
    ),
    "ids below zero": (
        lambda model, cache: model(IDS - 99, past_key_values=cache),
        ["0..96", "tokenizer", str(int(IDS.min()) - 99)],
    ),
    "ids that are fractions": (
        lambda model, cache: model(IDS.float(), past_key_values=cache),
        ["input_ids", "float32", "whole numbers", "inputs_embeds"],
    ),
    "generating from ids above the vocabulary": (
        lambda model, cache: model.generate(WHOLE + 97, past_key_values=cache, max_new_tokens=2),
        ["0..96", "tokenizer"],
    ),
    "a mask that is too short": (
        lambda model, cache: model(IDS, attention_mask=mask(1, 4), past_key_values=cache),
        ["attention_mask", "(1, 4)", "[1, 24]"],
    ),
    "a mask that is too long": (
        lambda model, cache: model(IDS, attention_mask=mask(1, 25), past_key_values=cache),
        ["attention_mask", "(1, 25)", "[1, 24]"],
    ),
    "a mask of other rows": (
        lambda model, cache: model(IDS, attention_mask=mask(3, 24), past_key_values=cache),
        ["attention_mask", "(3, 24)", "[1, 24]"],
    ),
    "a mask of a list": (
        lambda model, cache: model(IDS, attention_mask=[1, 1, 1, 1], past_key_values=cache),
        ["attention_mask", "list", "24"],
    ),
    "positions of another length": (
        lambda model, cache: model(IDS, position_ids=torch.arange(9)[None], past_key_values=cache),
        ["position_ids", "[1, 9]", "[1, 4]"],
    ),
    "labels of another length": (
        lambda model, cache: model(IDS, labels=IDS[:, :2], past_key_values=cache),
        ["labels", "[1, 2]", "[1, 4]"],
    ),
    "other rows": (
        lambda model, cache: model(IDS.expand(3, -1), past_key_values=cache),
        ["FocusCache", "1 rows", "3"],
    ),
    "nothing kept": (
        lambda model, cache: model(IDS, last_context_length=0, past_key_values=cache),
        ["last_context_length", "0", "at least 1"],
    ),
    "less than nothing kept": (
        lambda model, cache: model(IDS, last_context_length=-3, past_key_values=cache),
        ["last_context_length", "-3", "at least 1"],
    ),
    "a plan and a cache": (
        lambda model, cache: model(
            IDS, additional_contexts=torch.full((1, 1), -1), past_key_values=cache
        ),
        ["additional_contexts", "past_key_values"],
    ),
}

READING: dict[str, tuple[Any, list[str]]] = {
    "no ids": (torch.empty(0, dtype=torch.long), ["nothing to read", "empty"]),
    "an empty list": ([], ["nothing to read", "empty"]),
    "ids above the vocabulary": (torch.tensor([3, 97]), ["0..96", "97", "tokenizer"]),
    "fractions": (torch.tensor([0.5]), ["integers", "float32"]),
    "a text without a tokenizer": ("a text", ["tokenizer", "Session"]),
}


def assert_says(error: Exception, parts: list[str]) -> None:
    """The error is for users, and its message has all parts."""
    assert isinstance(error, LongFocusError)
    assert isinstance(error, ValueError)
    missing = [part for part in parts if part not in str(error)]
    assert not missing, str(error)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def conversation(model: PreTrainedModel) -> longfocus.FocusCache:
    cache = longfocus.FocusCache(model)
    model(text(20, (0,))[0], past_key_values=cache)
    return cache


def what_follows(model: PreTrainedModel, cache: Any) -> Tensor:
    with torch.no_grad():
        return model(text(15, (0,))[0], past_key_values=cache).logits


@pytest.mark.parametrize(("action", "parts"), ATTACHING.values(), ids=ATTACHING)
def test_a_model_that_cannot_be_attached_to_is_refused_and_stays(
    model: PreTrainedModel, action: Action, parts: list[str]
) -> None:
    plain, untouched = tiny_model(ENTRY), tiny_model(ENTRY)
    with pytest.raises(LongFocusError) as error:
        action(plain, model)
    assert_says(error.value, parts)
    assert type(plain) is type(untouched)
    assert plain.config.to_dict() == untouched.config.to_dict()
    assert what_follows(plain, None).equal(what_follows(untouched, None))
    assert what_follows(model, None).equal(what_follows(attached(ENTRY), None))


@pytest.mark.parametrize(("action", "parts"), CALLING.values(), ids=CALLING)
def test_a_call_that_cannot_be_answered_is_refused_and_the_conversation_goes_on(
    model: PreTrainedModel, action: Action, parts: list[str]
) -> None:
    cache = conversation(model)
    with pytest.raises(LongFocusError) as error:
        action(model, cache)
    assert_says(error.value, parts)
    assert cache.get_seq_length() == 20
    assert what_follows(model, cache).equal(what_follows(model, conversation(model)))


@pytest.mark.parametrize(("source", "parts"), READING.values(), ids=READING)
def test_a_source_that_cannot_be_read_is_refused(
    model: PreTrainedModel, source: Any, parts: list[str]
) -> None:
    with pytest.raises(LongFocusError) as error:
        longfocus.read_document(model, None, source)
    assert_says(error.value, parts)


@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
def test_pairs_that_are_not_finite_do_not_enter_the_memory_and_can_be_taken_back(
    projection: str,
) -> None:
    model = attached(ENTRY)
    good, bad = text(8, (0,))[0], text(5, (0,))[0]
    cache, expected = longfocus.FocusCache(model), longfocus.FocusCache(model)
    for c in (cache, expected):
        model(good, past_key_values=c)
    # only the later of the two memory layers goes wrong
    weight = getattr(model.model.layers[3].self_attn, projection).weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0] = torch.nan
        model(bad, past_key_values=cache)
        with pytest.raises(LongFocusError) as error:
            model(good[:, :1], past_key_values=cache)
        weight.copy_(before)
    assert_says(error.value, ["NaN", "weights", "bfloat16"])
    assert cache.get_seq_length() == WINDOW
    for layer in range(4):
        assert (cache.window_length(layer), cache.memory_length(layer)) == (WINDOW, 0)
    cache.crop(-5)
    assert what_follows(model, cache).equal(what_follows(model, expected))


def test_dropout_in_a_memory_layer_is_refused_and_the_conversation_goes_on() -> None:
    model = attached(ENTRY)
    cache, expected = conversation(model), conversation(model)
    for module in model.model.layers:
        module.self_attn.attention_dropout = 0.1
    model.train()
    with pytest.raises(LongFocusError) as error:
        model(IDS, past_key_values=cache)
    assert_says(error.value, ["dropout", "0.1", "attention_dropout = 0"])
    model.eval()
    assert what_follows(model, cache).equal(what_follows(model, expected))


def test_running_only_the_body_of_an_attached_model_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(LongFocusError) as error:
        model.model(IDS)
    assert_says(error.value, ["LlamaAttention", "model.model", "Call the model itself"])
    assert what_follows(model, None).equal(what_follows(attached(ENTRY), None))
