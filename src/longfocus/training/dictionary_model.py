"""The dictionary model: a stock Qwen3, drawn at random or started from a trained one, with its memory attached."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core import dictionary_task as task
from longfocus.core.plans import NONE
from longfocus.hf.pretrained import read_config
from longfocus.training.dictionary_recipe import DictionaryRecipe
from longfocus.training.model import scale_positions
from longfocus.training.places import place_of


def make_model(recipe: DictionaryRecipe) -> Any:
    """The model before training with its memory attached; the same seed gives the same weights."""
    from longfocus.hf.attach import attach

    model = _started(recipe) if recipe.model else _drawn(recipe)
    focus = FocusConfig(
        memory_layers=recipe.memory_layers,
        window=min(recipe.max_positions or task.WINDOW, task.WINDOW),
        positions=recipe.positions,
        memory_dtype="bfloat16",
    )
    # Says that this model has a memory of its own, so that attach does not warn of an untrained one.
    model.config.focus = focus.to_dict()
    attach(model, focus)
    # At these lengths its backward pass takes half the time of the fused one on CPUs. It is not saved.
    model.set_attn_implementation("eager")
    return model


def _started(recipe: DictionaryRecipe) -> Any:
    """The model that the recipe starts from, with its positions scaled."""
    from transformers import AutoModelForCausalLM

    place = place_of(recipe.model or "", "--model")
    config = scale_positions(read_config(place), recipe.rope_scaling)
    config.__dict__.pop("focus", None)
    return AutoModelForCausalLM.from_pretrained(place, config=config, dtype=torch.float32)


def _drawn(recipe: DictionaryRecipe) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=task.VOCABULARY,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_positions or task.WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=False,
        initializer_range=recipe.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=task.PAD,
    )
    scaled: Any = scale_positions(config, recipe.rope_scaling)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = Qwen3ForCausalLM(scaled)
        _draw_weights(model, recipe)
    return model


def _draw_weights(model: Any, recipe: DictionaryRecipe) -> None:
    """Embeddings of size 1, and outputs into the residual stream small enough for its depth."""
    depth = (2 * recipe.layers) ** -0.5
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 1)
        for layer in model.model.layers:
            attended = recipe.heads * recipe.head_dim
            layer.self_attn.o_proj.weight.normal_(0, attended**-0.5 * depth)
            layer.mlp.down_proj.weight.normal_(0, recipe.intermediate_size**-0.5 * depth)


def places_of(
    plan: Int64[Tensor, "rows contexts"], length: int, span: int, generator: torch.Generator
) -> Int64[Tensor, "rows length"]:
    """Places in one stream, for `positions="true"`: what a row sees stands in the `span` windows before it.

    Rows that see `span` windows, all the same, see them in order. Rows that see one of their own each have it at a
    random one of these places, so that all distances are known before there is more to see.
    """
    contexts = plan.shape[1]
    sees = (plan != NONE).any(1)
    if contexts == span:
        window = torch.arange(len(plan)) % span
    else:
        window = torch.randint(span, (len(plan),), generator=generator)
    window[sees] = span
    return window[:, None] * length + torch.arange(length)
