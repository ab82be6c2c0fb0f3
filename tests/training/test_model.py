"""The model of a recipe: its weights are those of the place that the recipe names, its memory is the recipe's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import longfocus
from families import SIZES
from longfocus.config import FocusConfig
from longfocus.training import adapters
from longfocus.training.model import make_model, model_config
from longfocus.training.recipe import ContinueRecipe, ScratchRecipe

SMALL = {"layers": 3, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8}
PUBLISHED = Path(__file__).parents[1] / "golden" / "data" / "open" / "inference" / "models" / "a"


def scratch(**changes: Any) -> ScratchRecipe:
    return ScratchRecipe(**{"data": ("x",), "vocabulary": 50, "window": 16, **SMALL, **changes})


def continued(model: Path, **changes: Any) -> ContinueRecipe:
    return ContinueRecipe(data=("x",), model=str(model), **changes)


def saved(folder: Path, focus: FocusConfig | None = None) -> Path:
    """A tiny model in `folder`, with memory and random gates if `focus` says so."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    if focus is not None:
        model.config.focus = focus.to_dict()
        longfocus.attach(model, focus)
        for name, parameter in model.named_parameters():
            if name.endswith("focus_gate"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def test_a_scratch_model_is_the_same_for_the_same_seed() -> None:
    one, same, other = (
        make_model(recipe, model_config(recipe)).state_dict()
        for recipe in (scratch(), scratch(), scratch(seed=1))
    )
    assert all(one[name].equal(same[name]) for name in one)
    assert any(one[name].ne(other[name]).any() for name in one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scratch_model_has_the_sizes_and_memory_of_its_recipe(dtype: Any) -> None:
    recipe = scratch(memory_layers=(1,), positions="none", dtype=dtype, rope_scaling="linear:2")
    config = model_config(recipe, vocabulary=77)
    model: Any = make_model(recipe, config)
    assert model.focus.config == FocusConfig(memory_layers=(1,), window=16, positions="none")
    assert model.config.focus == model.focus.config.to_dict()
    assert (model.config.vocab_size, len(model.model.layers)) == (77, 3)
    assert model.config.max_position_embeddings == 32
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_stock_model_is_loaded_with_its_weights_and_gets_a_memory(tmp_path: Path) -> None:
    place = saved(tmp_path)
    recipe = continued(place, window=16, rope_scaling="yarn:2")
    config = model_config(recipe)
    model: Any = make_model(recipe, config)
    assert model.focus.config == FocusConfig(memory_layers=(1, 2, 3), window=16)
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.max_position_embeddings == 512
    assert_weights(model, place)


def assert_weights(model: PreTrainedModel, place: Path, gates: bool = False) -> None:
    """All weights of the checkpoint are in the model, its gates if they should be."""
    stored, found = load_file(place / "model.safetensors"), model.state_dict()
    wanted = {n for n in stored if gates or not n.endswith("focus_gate")}
    assert all(found[name].float().equal(stored[name].float()) for name in wanted)


def test_scaled_positions_reach_a_model_that_has_a_memory_too(tmp_path: Path) -> None:
    place = saved(tmp_path, FocusConfig(memory_layers=(1,), window=16))
    recipe = continued(place, rope_scaling="linear:2")
    model: Any = make_model(recipe, model_config(recipe))
    assert model.focus.config == FocusConfig(memory_layers=(1,), window=16)
    assert model.config.rope_parameters["rope_type"] == "linear"
    assert model.model.rotary_emb.rope_type == "linear"
    assert_weights(model, place)


@pytest.mark.parametrize("changes", [{}, {"window": 8}, {"positions": "none"}])
def test_gates_that_were_trained_go_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    focus = FocusConfig(memory_layers=(1, 3), window=16, merge="gate")
    place = saved(tmp_path, focus)
    recipe = continued(place, **changes)
    model: Any = make_model(recipe, model_config(recipe))
    assert model.focus.config == replace(focus, **changes)
    assert_weights(model, place, gates=True)


@pytest.mark.parametrize(
    "changes", [{"merge": "joint"}, {"memory_layers": (2,)}, {"method": "plain"}]
)
def test_gates_are_left_behind_where_the_recipe_has_others_or_none(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    place = saved(tmp_path, FocusConfig(memory_layers=(1, 3), window=16, merge="gate"))
    recipe = continued(place, **changes)
    model = make_model(recipe, model_config(recipe))
    gates = {n: p for n, p in model.named_parameters() if n.endswith("focus_gate")}
    assert len(gates) == (1 if "memory_layers" in changes else 0)
    assert all(gate.eq(0).all() for gate in gates.values())
    assert_weights(model, place)


def test_a_published_longllama_goes_on_with_its_own_memory() -> None:
    recipe = continued(PUBLISHED)
    model: Any = make_model(recipe, model_config(recipe))
    assert model.focus.config == longfocus.from_pretrained(PUBLISHED).focus.config
    assert model.config.model_type == "llama"
    assert_weights(model, PUBLISHED)


def test_a_model_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(longfocus.LongFocusError, match="does not know"):
        model_config(continued(tmp_path))


def test_weights_in_4_bits_without_their_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = continued(saved(tmp_path), lora_rank=2, quantize="4bit")
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(longfocus.LongFocusError, match=r"longfocus\[qlora\].*--lora-rank alone"):
        make_model(recipe, model_config(recipe))
