"""What a recipe means: memory layers, windows, scaled positions; and what cannot work is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import longfocus
from families import SIZES, YARN
from longfocus.config import FocusConfig
from longfocus.core.additional import AdditionalContexts
from longfocus.errors import LongFocusError
from longfocus.hf.layers import longest_window
from longfocus.training.model import (
    focus_config,
    model_config,
    recipe_window,
    scale_positions,
)
from longfocus.training.recipe import ContinueRecipe, InstructRecipe, Recipe, ScratchRecipe
from longfocus.training.run import make_method

SMALL = {"layers": 3, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8}
PUBLISHED = Path(__file__).parents[1] / "golden" / "data" / "open" / "inference" / "models" / "a"


def scratch(**changes: Any) -> ScratchRecipe:
    return ScratchRecipe(**{"data": ("x",), "vocabulary": 50, "window": 16, **SMALL, **changes})


def continued(model: Path | str = "m", **changes: Any) -> ContinueRecipe:
    return ContinueRecipe(data=("x",), model=str(model), **changes)


def llama(**settings: Any) -> Any:
    return AutoConfig.for_model("llama", **{**SIZES, **settings})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"data": ()}, "nothing to train on"),
        ({"weights": (1.0, 2.0)}, "2 for 1"),
        ({"batch_size": 0}, "batch_size .* Got 0"),
        ({"accumulation": 0}, "accumulation .* Got 0"),
        ({"epochs": 0}, "epochs .* Got 0"),
        ({"save_steps": -1}, "save_steps .* Got -1"),
        ({"max_steps": 0}, "max_steps .* Got 0"),
        ({"stream": True}, "Give --max-steps"),
        ({"quantize": "4bit"}, "Give --lora-rank"),
        ({"lora_rank": 0}, "lora_rank .* Got 0"),
        ({"lora_rank": 2, "merge": "gate"}, "Gates are weights of their own"),
        ({"lora_rank": 2, "optimizer": "muon"}, "Muon needs whole matrices"),
        ({"fsdp": True, "optimizer": "muon"}, "Muon needs whole matrices"),
        ({"temperature_rate": 2.0}, "Only muon has a rate of its own"),
        ({"temperature_rate": -1.0, "optimizer": "muon"}, "temperature_rate must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], reason: str) -> None:
    for kind in (ContinueRecipe, InstructRecipe):
        with pytest.raises(longfocus.LongFocusError, match=reason):
            kind(**{"data": ("x",), "model": "m", **wrong})
    with pytest.raises(longfocus.LongFocusError, match=reason):
        ScratchRecipe(**{"data": ("x",), **wrong})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"lora_rank": 2}, "nothing to adapt"),
        ({"heads": 4, "kv_heads": 3}, "heads=4 .* kv_heads=3"),
        ({"kv_heads": 0}, "kv_heads=0"),
    ],
)
def test_a_model_that_cannot_be_made_from_nothing_is_refused(
    wrong: dict[str, Any], reason: str
) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason):
        scratch(**wrong)


@pytest.mark.parametrize(
    "recipe", [scratch(weights=(1.0,)), continued(memory_layers=(1,), d="2,4")]
)
def test_a_recipe_as_json_makes_the_recipe_again(recipe: Recipe) -> None:
    written = json.loads(json.dumps(recipe.to_dict()))
    assert written.pop("kind_of_training") == type(recipe).__name__
    lists = {name: tuple(value) for name, value in written.items() if isinstance(value, list)}
    assert type(recipe)(**{**written, **lists}) == recipe


def test_sources_have_the_weights_and_names_of_the_data() -> None:
    one, two = (
        scratch().sources,
        scratch(data=("x", "y"), weights=(1.0, 3.0), min_tokens=(7,)).sources,
    )
    assert [(s.path, s.weight, s.name) for s in one] == [("x", None, None)]
    assert [(s.path, s.weight, s.name) for s in two] == [("x", 1.0, "x"), ("y", 3.0, "y")]
    assert {s.min_tokens for s in two} == {7}


@pytest.mark.parametrize(
    ("layers", "memory_layers"),
    [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (4, (1, 2, 3)), (32, (8, 16, 24))],
)
def test_memory_lies_at_quarters_of_the_depth(layers: int, memory_layers: tuple[int, ...]) -> None:
    found = focus_config(continued(), llama(num_hidden_layers=layers))
    assert found == FocusConfig(memory_layers=memory_layers, window=256)


@pytest.mark.parametrize("method", ["plain", "transformer_xl"])
def test_methods_without_memory_get_none(method: Any) -> None:
    assert focus_config(continued(method=method), llama()) is None


def test_a_recipe_changes_the_memory_of_a_model_only_where_it_says_so() -> None:
    before = FocusConfig(
        memory_layers=(1,),
        window=32,
        positions="none",
        merge="gate",
        memory_dtype="bfloat16",
        top_k=7,
    )
    config = llama()
    config.focus = before.to_dict()
    assert focus_config(continued(), config) == before
    changed = continued(memory_layers=(3, 2), window=64, positions="window_start", merge="joint")
    assert focus_config(changed, config) == replace(
        before, memory_layers=(2, 3), window=64, positions="window_start", merge="joint"
    )


@pytest.mark.parametrize(
    ("window", "saved_window", "longest", "expected"),
    [(9, 32, 256, 9), (None, 32, 256, 32), (None, None, 256, 256), (None, None, 4096, 2048)],
)
def test_the_window_is_the_recipes_or_the_models(
    window: int | None, saved_window: int | None, longest: int, expected: int
) -> None:
    config = llama(max_position_embeddings=longest)
    if saved_window is not None:
        config.focus = FocusConfig(memory_layers=(1,), window=saved_window).to_dict()
    assert recipe_window(continued(window=window), config) == expected


def test_a_model_from_nothing_may_have_more_positions_than_its_window() -> None:
    for given, longest in ((None, 16), (64, 64)):
        config = model_config(scratch(max_positions=given))
        assert longest_window(config) == longest
        assert recipe_window(scratch(max_positions=given), config) == 16


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_reach_that_many_times_as_far(kind: str) -> None:
    config = scale_positions(llama(), f"{kind}:4")
    assert longest_window(config) == 4 * 256
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == (kind, 4.0, 1e4)
    # what transformers makes of it is what it makes of the settings that it documents
    given = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
    longest = 256 if kind == "dynamic" else 4 * 256
    if kind == "yarn":
        given["original_max_position_embeddings"] = 256
    expected = llama(rope_parameters=given, max_position_embeddings=longest)
    hidden, places = torch.zeros(1, 1), torch.arange(700)[None]
    ours, theirs, plain = (
        AutoModelForCausalLM.from_config(c).model.rotary_emb(hidden, places)[0]
        for c in (config, expected, llama())
    )
    assert ours.equal(theirs)
    # 700 is more than 256: every kind has an effect there
    assert ours.ne(plain).any()


def test_positions_that_are_not_scaled_stay_as_they_are() -> None:
    assert scale_positions(llama(), None).to_dict() == llama().to_dict()


GEMMA = {"model_type": "gemma3_text", **SIZES}


@pytest.mark.parametrize(
    ("scaling", "config"),
    [
        *[
            (wrong, llama())
            for wrong in (
                "yarn",
                "yarn:",
                "yarn:x",
                "yarn:0.5",
                "yarn:nan",
                "yarn:inf",
                "ntk:4",
                "",
            )
        ],
        ("yarn:4", llama(rope_parameters=YARN)),
        ("linear:2", AutoConfig.for_model(**GEMMA)),
        ("linear:2", AutoConfig.for_model("gpt2")),
    ],
)
def test_a_scaling_that_cannot_be_meant_is_refused(scaling: str, config: Any) -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"cannot be used. Allowed: linear:FACTOR"):
        scale_positions(config, scaling)


def test_least_tokens_hold_for_all_data_or_for_each() -> None:
    for given, expected in (((5,), [5, 5]), ((5, 2048), [5, 2048])):
        recipe = scratch(data=("a", "b"), min_tokens=given)
        assert [source.min_tokens for source in recipe.sources] == expected
    with pytest.raises(LongFocusError, match="--min-tokens must give one number"):
        scratch(data=("a", "b"), min_tokens=(1, 2, 3))


@pytest.mark.parametrize("detached", [False, True])
def test_a_recipe_says_whether_other_rows_take_gradients(detached: bool) -> None:
    recipe = continued(memory_layers=(1,), window=16, detach_contexts=detached)
    given = []

    class Asked(torch.nn.Module):
        def forward(self, additional_contexts: AdditionalContexts, **_: Any) -> Any:
            given.append(additional_contexts.detached)
            return None

    ids = torch.zeros(4, 16, dtype=torch.long)
    batch: Any = {"input_ids": ids, "labels": ids, "documents": ids}
    make_method(recipe, llama()).forward(Asked(), batch, {})
    assert given == [detached]
