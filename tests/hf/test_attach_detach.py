"""Attaching leaves no trace beyond the memory, detaching none at all, and what cannot work is refused."""

from typing import Any

import pytest
import torch
from attached import KEPT, WINDOW, text, with_memory
from torch import nn
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, REFUSED, Family, refused_model, tiny_model

every_family = pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that an attached memory could leave behind."""
    return {
        "class": type(model),
        "config": model.config.to_dict(),
        "config attributes": sorted(vars(model.config)),
        "attention": model.config._attn_implementation,
        "generation config": model.generation_config.to_dict(),
        "state dict": {name: value.clone() for name, value in model.state_dict().items()},
        "modules": {name: module_fingerprint(module) for name, module in model.named_modules()},
    }


def module_fingerprint(module: nn.Module) -> dict[str, Any]:
    attributes = vars(module)
    return {
        "class": type(module),
        "attributes": sorted(attributes),
        "hooks": {
            name: list(hooks) for name, hooks in attributes.items() if "hook" in name and hooks
        },
        "training": module.training,
        "gradients": [
            (name, p.requires_grad, p.grad is None) for name, p in module.named_parameters()
        ],
        "buffers": sorted(name for name, _ in module.named_buffers()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights_before, weights_after = before.pop("state dict"), after.pop("state dict")
    assert list(weights_before) == list(weights_after)
    assert all(weights_before[name].equal(weights_after[name]) for name in weights_before)
    for part in before:
        assert after[part] == before[part], part


@every_family
def test_detach_leaves_nothing_behind(entry: Family) -> None:
    model = tiny_model(entry)
    input_ids, _ = text(40)
    # Some stock models (longrope) keep buffers from their first forward on.
    model(input_ids)
    before = fingerprint(model)
    with_memory(model, entry.memory_layers)
    model.generate(input_ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    longfocus.detach(model)
    assert_same(before, fingerprint(model))
    plain = tiny_model(entry)
    with torch.no_grad():
        assert model(input_ids).logits.equal(plain(input_ids).logits)


@every_family
def test_attaching_restores_random_numbers_modes_and_weights(entry: Family) -> None:
    model = tiny_model(entry).train()
    model.get_input_embeddings().eval()
    before = fingerprint(model)
    random_state = torch.get_rng_state()
    with_memory(model, entry.memory_layers)
    assert torch.get_rng_state().equal(random_state)
    after = fingerprint(model)
    assert list(after["state dict"]) == list(before["state dict"])
    for name, module in before["modules"].items():
        for part in ("training", "gradients", "buffers"):
            assert after["modules"][name][part] == module[part], (name, part)


def test_the_saved_config_of_an_attached_model_keeps_the_stock_class_name(tmp_path: Any) -> None:
    model = with_memory(tiny_model(FAMILIES[0]), FAMILIES[0].memory_layers)
    model.save_pretrained(tmp_path)
    plain = type(tiny_model(FAMILIES[0])).from_pretrained(tmp_path)
    input_ids, _ = text(WINDOW)
    with torch.no_grad():
        assert plain(input_ids).logits.equal(model(input_ids).logits)
    assert plain.config.architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("model_type", REFUSED)
def test_an_architecture_that_cannot_be_attached_is_refused_with_the_reason(
    model_type: str,
) -> None:
    model = refused_model(model_type)
    before = fingerprint(model)
    with pytest.raises(longfocus.LongFocusError) as error:
        with_memory(model, (1,))
    assert type(model).__name__ in str(error.value)
    assert len(str(error.value).split()) > 8
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize("layers", [(1, 4), (-1,)])
def test_layers_that_the_model_does_not_have_are_refused_with_the_allowed_range(
    layers: tuple[int, ...],
) -> None:
    model = tiny_model(FAMILIES[0])
    before = fingerprint(model)
    with pytest.raises(longfocus.LongFocusError, match=r"4 layers"):
        with_memory(model, layers)
    assert_same(before, fingerprint(model))


def test_a_window_longer_than_the_positions_of_the_model_is_refused() -> None:
    with pytest.raises(longfocus.LongFocusError, match="256"):
        with_memory(tiny_model(FAMILIES[0]), (1,), window=257, last_context_length=KEPT)


def test_attaching_twice_is_refused_and_the_first_memory_stays() -> None:
    model = with_memory(tiny_model(FAMILIES[0]), (1,))
    before = fingerprint(model)
    with pytest.raises(longfocus.LongFocusError, match="detach"):
        with_memory(model, (2,))
    assert_same(before, fingerprint(model))


def test_detaching_a_plain_model_is_refused() -> None:
    with pytest.raises(longfocus.LongFocusError, match="attach"):
        longfocus.detach(tiny_model(FAMILIES[0]))
