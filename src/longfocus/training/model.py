"""The model of a recipe: loaded or made, with its memory attached."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.attach import attach, detach
from longfocus.hf.model import FocusMixin
from longfocus.hf.pretrained import from_pretrained, read_config
from longfocus.training.adapters import quantization
from longfocus.training.places import place_of
from longfocus.training.recipe import ContinueRecipe, Recipe, ScratchRecipe
from longfocus.training.temperature import sharpen

LONGEST_DEFAULT_WINDOW = 2048
SCALINGS = ("linear", "dynamic", "yarn")


def model_config(recipe: Recipe, vocabulary: int | None = None) -> PreTrainedConfig:
    """The configuration of the model that will be trained, before anything is loaded."""
    if isinstance(recipe, ScratchRecipe):
        return _scratch_config(recipe, vocabulary or recipe.vocabulary)
    assert isinstance(recipe, ContinueRecipe)
    return scale_positions(read_config(place_of(recipe.model, "--model")), recipe.rope_scaling)


def focus_config(recipe: Recipe, config: PreTrainedConfig) -> FocusConfig | None:
    """The memory that the recipe gives the model; None for methods without one."""
    if recipe.method in ("plain", "transformer_xl"):
        return None
    depth = config.num_hidden_layers
    layers = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
    before = saved_focus(config) or FocusConfig(memory_layers=layers, window=LONGEST_DEFAULT_WINDOW)
    return replace(
        before,
        memory_layers=recipe.memory_layers or before.memory_layers,
        window=recipe_window(recipe, config),
        positions=recipe.positions or before.positions,
        merge=recipe.merge or before.merge,
    )


def saved_focus(config: PreTrainedConfig) -> FocusConfig | None:
    """The memory that the model was saved with."""
    # models without one have no such entry
    saved = getattr(config, "focus", None)
    return FocusConfig.from_dict(saved) if saved else None


def recipe_window(recipe: Recipe, config: PreTrainedConfig) -> int:
    """Tokens of a window: the recipe's, that of a model which has one, or its positions."""
    if recipe.window is not None:
        return recipe.window
    if before := saved_focus(config):
        return before.window
    longest = getattr(config, "max_position_embeddings", None) or LONGEST_DEFAULT_WINDOW
    return min(longest, LONGEST_DEFAULT_WINDOW)


def make_model(recipe: Recipe, config: Any) -> PreTrainedModel:
    """The model with random or saved weights, and memory where the method has one."""
    focus = focus_config(recipe, config)
    dtype = getattr(torch, recipe.dtype)
    if isinstance(recipe, ScratchRecipe):
        torch.manual_seed(recipe.seed)
        model: Any = Qwen3ForCausalLM(config)
        model.to(dtype)
    else:
        assert isinstance(recipe, ContinueRecipe)
        model = _loaded(recipe, config, focus, dtype)
    model.set_attn_implementation(recipe.attention)
    if focus is not None and not isinstance(model, FocusMixin):
        # says that its memory is going to be trained, so that attach does not warn
        model.config.focus = focus.to_dict()
        attach(model, focus)
    if focus is not None:
        sharpen(model, recipe.sharpen)
    return model


def scale_positions(config: PreTrainedConfig, scaling: str | None) -> PreTrainedConfig:
    """Set scaled rotary positions ("yarn:4"): the model may then have windows that many times as long."""
    if scaling is None:
        return config
    kind, _, factor = scaling.partition(":")
    parameters: Any = getattr(config, "rope_parameters", None)
    try:
        times = float(factor)
    except ValueError:
        times = 0.0
    # some models have a set for every kind of layer, under its name
    is_default = parameters is not None and parameters.get("rope_type") == "default"
    if kind not in SCALINGS or not 1 <= times < math.inf or not is_default:
        raise LongFocusError(
            f"rope_scaling={scaling!r} cannot be used. Allowed: {', '.join(f'{s}:FACTOR' for s in SCALINGS)} with a "
            "factor of at least 1, for models with one set of rotary parameters that is not scaled yet. This one has "
            f"{parameters}."
        )
    longest = config.max_position_embeddings
    config.rope_parameters = {**parameters, "rope_type": kind, "factor": times}
    if kind == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = longest
    # dynamic scaling begins where transformers takes the model's positions to end
    if kind != "dynamic":
        config.max_position_embeddings = int(longest * times)
    return config


def _loaded(
    recipe: ContinueRecipe,
    config: PreTrainedConfig,
    focus: FocusConfig | None,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The saved weights; with the memory attached if its gates are among them."""
    place, config = place_of(recipe.model, "--model"), deepcopy(config)
    options: dict[str, Any] = {"dtype": dtype, "config": config, **quantization(recipe)}
    saved = saved_focus(config)
    config.__dict__.pop("focus", None)
    if saved is None or saved.merge != "gate":
        return AutoModelForCausalLM.from_pretrained(place, **options)
    # gates of the checkpoint are read by a model that has them
    keeps = focus is not None and (focus.merge, focus.memory_layers) == (
        "gate",
        saved.memory_layers,
    )
    config.focus = (focus if keeps else saved).to_dict()
    loaded = from_pretrained(place, verify=False, **options)
    return loaded if keeps else detach(loaded)


def _scratch_config(recipe: ScratchRecipe, vocabulary: int) -> PreTrainedConfig:
    window = recipe.window or LONGEST_DEFAULT_WINDOW
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=-(-recipe.hidden_size * 8 // 3 // 64) * 64,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_positions or window,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return scale_positions(config, recipe.rope_scaling)
