"""Sharpened memory layers: their scores are multiplied, whatever the architecture keeps its queries in."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import longfocus
from families import SIZES
from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.training.model import make_model, model_config
from longfocus.training.recipe import ScratchRecipe
from longfocus.training.temperature import sharpen


def attached(kind: str) -> Any:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    longfocus.attach(model, FocusConfig(memory_layers=(1,), window=16), verify=False)
    return model.eval()


def queries(model: Any, layer: int) -> torch.Tensor:
    """What a layer multiplies keys by, before positions."""
    attention = model.model.layers[layer].self_attn
    hidden = torch.linspace(-1, 2, 3 * SIZES["hidden_size"]).view(1, 3, -1)
    found = attention.q_proj(hidden)
    norm = getattr(attention, "q_norm", None)
    if norm is None:
        return found
    of_heads = norm.weight.shape[-1] != found.shape[-1]
    return norm(found.unflatten(-1, (-1, norm.weight.shape[-1])) if of_heads else found)


# norms that multiply by their weight, by one more than it, over all heads; projections with and without bias
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "olmo2", "qwen2", "llama"])
def test_queries_of_memory_layers_are_multiplied_and_no_others(kind: str) -> None:
    model = attached(kind)
    before = {layer: queries(model, layer) for layer in (0, 1)}
    sharpen(model, 2.5)
    torch.testing.assert_close(queries(model, 1), 2.5 * before[1])
    assert torch.equal(queries(model, 0), before[0])


def test_factor_one_changes_nothing() -> None:
    model = attached("gemma3_text")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sharpen(model, 1)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_an_architecture_without_queries_of_their_own_is_refused() -> None:
    with pytest.raises(LongFocusError, match=r"Memory layer 1 .* --sharpen needs one of them"):
        sharpen(attached("phi3"), 2)


def test_a_recipe_sharpens_before_training() -> None:
    recipe = {"data": ("x",), "vocabulary": 50, "window": 16, "layers": 3, "hidden_size": 32}
    recipe |= {"heads": 4, "kv_heads": 2, "head_dim": 8, "memory_layers": (1,)}
    plain, sharp = (
        make_model(chosen, model_config(chosen)).state_dict()
        for chosen in (ScratchRecipe(**recipe), ScratchRecipe(**recipe, sharpen=3.0))
    )
    changed = [name for name in plain if not plain[name].equal(sharp[name])]
    assert changed == ["model.layers.1.self_attn.q_norm.weight"]
    assert torch.equal(sharp[changed[0]], 3 * plain[changed[0]])


def test_nothing_to_sharpen_is_refused() -> None:
    with pytest.raises(LongFocusError, match=r"plain has no memory layers to sharpen"):
        ScratchRecipe(data=("x",), method="plain", sharpen=2.0)
    with pytest.raises(LongFocusError, match="Got 0"):
        ScratchRecipe(data=("x",), sharpen=0.0)
