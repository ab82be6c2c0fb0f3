"""An estimate counts the weights of the real model, and those that its adapters train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import SIZES
from longfocus.training import estimate
from longfocus.training.adapters import with_adapters
from longfocus.training.model import make_model, model_config
from longfocus.training.recipe import ContinueRecipe, ScratchRecipe

SMALL = {"layers": 3, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8}


def scratch(**changes: Any) -> ScratchRecipe:
    return ScratchRecipe(**{"data": ("x",), "vocabulary": 50, "window": 16, **SMALL, **changes})


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_flops_per_second", lambda recipe: 1e9)


def counted(model: torch.nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    "changes",
    [{}, {"merge": "gate"}, {"method": "plain"}, {"memory_layers": (0,), "merge": "gate"}],
)
def test_the_estimate_counts_the_weights_of_the_real_scratch_model(changes: dict[str, Any]) -> None:
    recipe = scratch(**changes)
    config = model_config(recipe)
    found = estimate.estimate(recipe, config, steps=3)
    real = make_model(recipe, config)
    assert (found.parameters, found.trained) == counted(real)
    assert (found.steps, found.tokens_per_step) == (3, 8 * 16)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("model_type", "rank"),
    [("llama", None), ("llama", 3), ("gpt_neox", None), ("gpt_neox", 2), ("qwen3_moe", None)],
)
def test_the_estimate_counts_the_weights_of_a_real_model_and_its_adapters(
    model_type: str, rank: int | None, tied: bool, tmp_path: Path
) -> None:
    experts = {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "head_dim": 8,
    }
    config = AutoConfig.for_model(model_type, **{**SIZES, **experts, "tie_word_embeddings": tied})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    recipe = ContinueRecipe(data=("x",), model=str(tmp_path), window=16, lora_rank=rank)
    found = estimate.estimate(recipe, model_config(recipe), steps=1)
    model = make_model(recipe, model_config(recipe))
    assert found.parameters == counted(model)[0]
    assert found.trained == counted(with_adapters(model, recipe))[1]


@pytest.mark.usefixtures("untimed")
def test_an_estimate_grows_with_steps_batch_and_processes() -> None:
    recipe, config = scratch(), model_config(scratch())
    one = estimate.estimate(recipe, config, steps=10)
    assert estimate.estimate(recipe, config, steps=20).seconds == pytest.approx(2 * one.seconds)
    both = estimate.estimate(recipe, config, steps=10, processes=2)
    assert (both.tokens_per_step, both.seconds) == (2 * one.tokens_per_step, one.seconds)
    larger = estimate.estimate(replace(recipe, batch_size=16), config, steps=10)
    assert larger.memory_bytes > one.memory_bytes
    saving = estimate.estimate(replace(recipe, gradient_checkpointing=True), config, steps=10)
    assert saving.memory_bytes < one.memory_bytes


def test_the_speed_of_the_device_is_measured() -> None:
    assert estimate._flops_per_second(scratch(cpu=True)) > 0
