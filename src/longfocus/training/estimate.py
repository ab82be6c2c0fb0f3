"""What a training will need, before it begins: parameters, memory, time. Estimates, and said to be."""

import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from longfocus.training.model import focus_config, recipe_window
from longfocus.training.recipe import Recipe
from longfocus.training.run import tokens_per_step
from longfocus.training.settings import is_narrow, training_device

MEASURED_SIZE, MEASURED_SECONDS = 1024, 0.3
EFFICIENCY = 0.4
"""Share of the speed of large matrix products that training reaches; measured between .25 and .5 on CPUs."""
ADAM_BYTES = 8
"""Two float32 averages per trained weight."""


@dataclass(frozen=True)
class Estimate:
    """Of one process, but for `seconds`, which are those of the whole training."""

    parameters: int
    trained: int
    tokens_per_step: int
    """Over all processes."""
    steps: int
    memory_bytes: int
    """Weights, gradients, optimizer and activations."""
    seconds: float


def estimate(recipe: Recipe, config: PreTrainedConfig, steps: int, processes: int = 1) -> Estimate:
    """Builds the model without weights, and times a matrix product for the speed of this device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = model.num_parameters() + _gates(recipe, config)
    trained = parameters
    if recipe.lora_rank is not None:
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        head = model.get_output_embeddings()
        trained = recipe.lora_rank * sum(
            layer.in_features + layer.out_features for layer in layers if layer is not head
        )
    window = recipe_window(recipe, config)
    tokens = tokens_per_step(recipe, window, processes)
    per_weight = torch.empty(0, dtype=getattr(torch, recipe.dtype)).element_size()
    frozen = parameters + (trained if recipe.lora_rank is not None else 0)
    weights = frozen * (0.5 if recipe.quantize else per_weight)
    memory = weights + trained * (per_weight + ADAM_BYTES)
    memory += _activation_bytes(recipe, config, recipe.batch_size * window)
    # forward 2, backward 2 for the inputs and 2 for the weights that are trained
    flops = (4 + 2 * trained / max(parameters, 1)) * parameters * tokens / processes
    flops += _attention_flops(config, tokens / processes, window)
    seconds = steps * flops / (_flops_per_second(recipe) * EFFICIENCY)
    return Estimate(parameters, trained, tokens, steps, int(memory), seconds)


def _is_narrow(recipe: Recipe) -> bool:
    return recipe.bf16 and is_narrow(use_cpu=recipe.cpu)


def _gates(recipe: Recipe, config: PreTrainedConfig) -> int:
    focus = focus_config(recipe, config)
    if focus is None or focus.merge != "gate":
        return 0
    return config.num_attention_heads * len(focus.memory_layers)


def _activation_bytes(recipe: Recipe, config: PreTrainedConfig, tokens: int) -> float:
    """What the backward pass needs: about 12 vectors of the hidden and 4 of the inner size per token and layer."""
    size = 2 if _is_narrow(recipe) else 4
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    layer = (12 * config.hidden_size + 4 * inner) * size
    layers = config.num_hidden_layers
    kept = (
        layers * config.hidden_size * 4 + layer if recipe.gradient_checkpointing else layers * layer
    )
    # logits once in their own type, and twice in float32 in the loss
    logits = config.vocab_size * (size + 8)
    return tokens * (kept + logits)


def _attention_flops(config: PreTrainedConfig, tokens: float, window: int) -> float:
    return 6 * tokens * window * config.hidden_size * config.num_hidden_layers


def _flops_per_second(recipe: Recipe) -> float:
    """Of a large matrix product on the device that will train."""
    device = training_device(use_cpu=recipe.cpu)
    dtype = torch.bfloat16 if _is_narrow(recipe) else torch.float32
    matrix = torch.randn(MEASURED_SIZE, MEASURED_SIZE, device=device).to(dtype)
    (matrix @ matrix).sum().item()
    made, started = 0, time.perf_counter()
    while time.perf_counter() - started < MEASURED_SECONDS:
        (matrix @ matrix).sum().item()
        made += 1
    return made * 2 * MEASURED_SIZE**3 / (time.perf_counter() - started)
