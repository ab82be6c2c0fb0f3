"""Of a configuration counts what can change the memory, and all that nobody knows."""

import copy
from typing import Any

import pytest
import torch
from attached import WINDOW, text
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import longfocus
from families import FULL, SLIDING, Family, family, tiny_model
from longfocus.hf.fingerprint import model_fingerprint

GEMMA3 = family("gemma3")
# Memory layers 1 and 2 of 4.
ALIKE = [
    ("gemma3", {"initializer_range": 0.5}),
    ("gemma3", {"attention_dropout": 0.5}),
    ("gemma3", {"use_cache": False}),
    ("gemma3", {"bos_token_id": 7, "eos_token_id": [2, 5], "pad_token_id": 3}),
    ("gemma3", {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]}),
    ("gemma3", {"layer_types": [SLIDING, FULL, SLIDING, SLIDING]}),
    ("qwen2", {"max_position_embeddings": 300}),
    ("qwen3_moe", {"output_router_logits": True, "router_aux_loss_coef": 0.5}),
]
OTHERWISE = [
    ("gemma3", {"layer_types": [SLIDING, SLIDING, SLIDING, FULL]}),
    ("gemma3", {"sliding_window": 3}),
    ("gemma3", {"rms_norm_eps": 0.5}),
    ("gemma3", {"query_pre_attn_scalar": 3}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}),
    ("qwen2", {"hidden_act": "relu"}),
    ("qwen3_moe", {"norm_topk_prob": True}),
]


def changed(entry: Family, changes: dict[str, Any]) -> PreTrainedModel:
    """The family's model with other settings and the same weights, as far as it has them, with memory attached."""
    model = tiny_model(entry)
    given = {**model.config.to_dict(), **changes}
    config = AutoConfig.for_model(
        entry.model_type, **{name: given[name] for name in given if name != "model_type"}
    )
    other = AutoModelForCausalLM.from_config(config, attn_implementation=entry.attention[0])
    found = other.load_state_dict(model.state_dict(), strict=False)
    assert not found.missing_keys
    focus = longfocus.FocusConfig(memory_layers=entry.memory_layers, window=WINDOW)
    return longfocus.attach(other.eval(), focus)


def pairs(model: PreTrainedModel) -> list[torch.Tensor]:
    layers = longfocus.read_document(model, None, text(60)[0][0]).layers.values()
    return [tensor for part in layers for tensor in (part.key, part.value)]


@pytest.mark.parametrize(("name", "changes"), ALIKE)
def test_what_cannot_change_the_memory_does_not_count(name: str, changes: dict[str, Any]) -> None:
    entry = family(name)
    model, other = changed(entry, {}), changed(entry, changes)
    # the change has arrived
    assert {key: other.config.to_dict()[key] for key in changes} == changes
    assert all(map(torch.equal, pairs(model), pairs(other)))
    assert model_fingerprint(model) == model_fingerprint(other)


@pytest.mark.parametrize(("name", "changes"), OTHERWISE)
def test_what_changes_the_memory_counts(name: str, changes: dict[str, Any]) -> None:
    entry = family(name)
    model, other = changed(entry, {}), changed(entry, changes)
    assert not all(map(torch.equal, pairs(model), pairs(other)))
    ours, theirs = model_fingerprint(model), model_fingerprint(other)
    assert {key for key in ours if ours[key] != theirs[key]} == {"settings"}


def counts(changes: dict[str, Any], before: dict[str, Any] | None = None) -> bool:
    """Whether entries of a configuration change the fingerprint; the model itself stays the same."""
    found = []
    for given in (before or {}, {**(before or {}), **changes}):
        model = changed(GEMMA3, {})
        for name, value in given.items():
            setattr(model.config, name, copy.deepcopy(value))
        found.append(model_fingerprint(model))
    return found[0] != found[1]


def test_entries_that_nobody_knows_count() -> None:
    assert counts({"unknown": 1})
    # as long as the list of layers, and no list of layers
    assert counts({"factors": [1.0, 2.0, 3.0, 5.0]}, {"factors": [1.0, 2.0, 3.0, 4.0]})


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_the_longest_text_counts_where_positions_are_scaled_by_it(kind: str) -> None:
    scaled = {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}}
    assert counts({"max_position_embeddings": 512}, scaled)
    by_kind = {"rope_parameters": {SLIDING: {"rope_type": "default"}, FULL: {"rope_type": kind}}}
    assert counts({"max_position_embeddings": 512}, by_kind)
    plain = {"rope_parameters": {SLIDING: {"rope_type": "default"}, FULL: {"rope_type": "default"}}}
    assert not counts({"max_position_embeddings": 512}, plain)
    # learned positions, for one
    assert counts({"max_position_embeddings": 512}, {"rope_parameters": None})


def test_configurations_inside_count_without_what_does_not_matter() -> None:
    inside = {"model_type": "siglip", "hidden_size": 8, "num_hidden_layers": 9}
    before = {"vision_config": inside}
    for entry in ({"initializer_range": 3.0}, {"dtype": "float32"}, {"attention_dropout": 0.1}):
        assert not counts({"vision_config": {**inside, **entry}}, before)
    for entry in ({"hidden_size": 9}, {"num_hidden_layers": 8}, {"unknown": 1}):
        assert counts({"vision_config": {**inside, **entry}}, before)


def test_the_number_of_layers_counts_where_layers_are_counted_from_the_last() -> None:
    assert not counts({"num_hidden_layers": 5})
    assert counts({"num_hidden_layers": 5}, {"num_kv_shared_layers": 2})


def test_for_a_conversation_every_layer_counts() -> None:
    model, other = (
        changed(GEMMA3, {"layer_types": [SLIDING, FULL, SLIDING, last]}) for last in (FULL, SLIDING)
    )
    assert model_fingerprint(model) == model_fingerprint(other)
    every = [model_fingerprint(each, every_layer=True) for each in (model, other)]
    assert every[0] != every[1]
