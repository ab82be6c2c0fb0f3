"""`longfocus train dictionary`: a small stock model learns the paper's dictionary lookup task from scratch.

    curriculum   3, 6, 12, 25 records per window, d = 1     each until the model answers 95% (98%)
    crossbatch   25 records per window, d = documents       every asking window sees all previous windows;
                                                            hard negatives: keys over small alphabets
    contrast     the same with a soft, fixed temperature

The paper (section 5.1) trains 37M parameters with d = 1 until 98%, then d = 128. Two additions make minutes on a
laptop enough: the curriculum, and keys that nearly collide. The model is a stock Qwen3: q_norm and k_norm hold
the paper's normalised queries and keys, and their weights in the memory layer its learnable temperature. No
positions in the memory layer.

A softmax that gets sharp early answers right among the 8,192 keys of a step while the right key stands only a little
above the others; one that stays soft forces it far above them. So the temperature learns slowly in the crossbatch
stage, and in the last stage it is softened and held, as in contrastive learning, where a loss that had vanished
appears again. When training is over, the softmax is made as sharp as a memory of millions of keys needs: `sharpen`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.core.labels import NO_LOSS
from longfocus.training.dictionary_model import make_model, places_of
from longfocus.training.dictionary_recipe import DictionaryRecipe
from longfocus.training.loop import METRICS_FILE, Outcome, Progress, train
from longfocus.training.output import open_output
from longfocus.training.stages import LoopSettings, Stage, StepResult
from longfocus.training.temperature import sharpen

TRAINING_FOLDER = "training"
SUMMARY_FILE = "training.json"


def train_dictionary(
    recipe: DictionaryRecipe,
    directory: Path,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    max_steps: float = math.inf,
) -> Outcome:
    """Train by the recipe and save the model in `directory`, going on where an earlier call was stopped.

    `directory/training` holds the checkpoint, `metrics.jsonl` every step, `training.json` the stages. A finished
    directory is left as it is. After `max_steps` steps training stops; a later call goes on.
    """
    if open_output(directory, recipe):
        return Outcome("finished", None, [])
    model = make_model(recipe)
    settings = LoopSettings(seed=recipe.seed, cpu_minutes=recipe.cpu_minutes, max_steps=max_steps)
    outcome = train(
        model,
        stages(model, recipe),
        directory / TRAINING_FOLDER,
        settings,
        report=report,
        metrics_file=directory / METRICS_FILE,
    )
    if outcome.ending == "finished":
        _save(model, recipe, outcome, directory)
    return outcome


def _save(model: Any, recipe: DictionaryRecipe, outcome: Outcome, directory: Path) -> None:
    """The model in bf16 with its sharpened scores, and how long each stage took."""
    if not recipe.curriculum_only:
        sharpen(model, recipe.sharpen)
    (directory / SUMMARY_FILE).write_text(json.dumps({"stages": outcome.stages}, indent=1) + "\n")
    model.to(torch.bfloat16).save_pretrained(directory)


def stages(model: Any, recipe: DictionaryRecipe) -> list[Stage]:
    """The curriculum with d = 1, then crossbatch with every document of the batch, twice."""
    until = dict.fromkeys(recipe.curriculum, recipe.curriculum_accuracy[0])
    until[recipe.curriculum[-1]] = recipe.curriculum_accuracy[1]
    easy = [
        Stage(
            name=f"{records} records, d=1",
            step=_curriculum_step(model, recipe, records),
            optimizers=(lambda: [_adamw(model, recipe, recipe.curriculum_rate, 1.0)])
            if index == 0
            else None,
            steps=recipe.curriculum_steps,
            until_accuracy=until[records],
            schedule=_warm_up(50 if index == 0 else 1),
        )
        for index, records in enumerate(recipe.curriculum)
    ]
    if recipe.curriculum_only:
        return easy
    return [
        *easy,
        _crossbatch_stage(model, recipe, "", recipe.steps, recipe.temperature_factor),
        replace(
            _crossbatch_stage(model, recipe, ", contrast", recipe.contrast_steps, 0.0),
            begin=lambda: _soften(model, recipe),
        ),
    ]


def _crossbatch_stage(
    model: Any, recipe: DictionaryRecipe, name: str, steps: int, temperature_factor: float
) -> Stage:
    return Stage(
        name=f"{recipe.curriculum[-1]} records, d={recipe.documents}{name}",
        step=_crossbatch_step(model, recipe),
        optimizers=lambda: [_adamw(model, recipe, recipe.rate, temperature_factor)],
        steps=steps,
        schedule=_cool_down(20, recipe.cooldown),
    )


@torch.no_grad()
def _soften(model: Any, recipe: DictionaryRecipe) -> None:
    """Give the softmax of the memory layers the temperature of the last stage."""
    for attention in _memory_attention(model, recipe):
        product = (attention.q_norm.weight * attention.k_norm.weight).mean()
        attention.q_norm.weight.mul_(recipe.contrast_temperature / product)


def _memory_attention(model: Any, recipe: DictionaryRecipe) -> list[Any]:
    """The attention modules of the memory layers."""
    return [model.model.layers[layer].self_attn for layer in recipe.memory_layers]


def _curriculum_step(
    model: Any, recipe: DictionaryRecipe, records: int
) -> Callable[[torch.Generator], StepResult]:
    from longfocus.core.plans import paper_plan

    documents = max(recipe.curriculum_documents, recipe.curriculum_rows // records)
    plan = paper_plan(documents, d=1)

    def step(generator: torch.Generator) -> StepResult:
        batch = task.training_batch(documents, documents, records, task.SYMBOLS, generator)
        return _answer(model, batch, plan, recipe, generator)

    return step


def _crossbatch_step(
    model: Any, recipe: DictionaryRecipe
) -> Callable[[torch.Generator], StepResult]:
    from longfocus.core.plans import paper_plan

    plan = paper_plan(recipe.documents, d=recipe.documents)[: recipe.documents + recipe.asking]

    def step(generator: torch.Generator) -> StepResult:
        chosen = torch.randint(len(recipe.alphabets), (), generator=generator)
        alphabet = recipe.alphabets[int(chosen)]
        batch = task.training_batch(
            recipe.documents, recipe.asking, recipe.curriculum[-1], alphabet, generator
        )
        return _answer(model, batch, plan, recipe, generator)

    return step


def _answer(
    model: Any,
    batch: task.TaskBatch,
    plan: Tensor,
    recipe: DictionaryRecipe,
    generator: torch.Generator,
) -> StepResult:
    """Loss and accuracy on the answer tokens of a crossbatch batch."""
    places = {}
    if recipe.positions == "true":
        length = batch.input_ids.shape[1]
        places = {"position_ids": places_of(plan, length, recipe.documents, generator)}
    output = model(
        input_ids=batch.input_ids,
        labels=batch.labels,
        additional_contexts=plan,
        use_cache=False,
        **places,
    )
    expected = batch.labels[:, 1:]
    asked = expected != NO_LOSS
    right = output.logits[:, :-1].detach()[asked].argmax(-1) == expected[asked]
    return StepResult(output.loss, right.float().mean().item(), batch.input_ids.numel())


def _adamw(
    model: Any, recipe: DictionaryRecipe, rate: float, temperature_factor: float
) -> torch.optim.Optimizer:
    attention = _memory_attention(model, recipe)
    temperature = [norm.weight for each in attention for norm in (each.q_norm, each.k_norm)]
    rest = [
        weight for weight in model.parameters() if all(weight is not other for other in temperature)
    ]
    groups = [
        {"params": rest, "lr": rate},
        {"params": temperature, "lr": rate * temperature_factor, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)


def _warm_up(steps: int) -> Callable[[int, float], float]:
    return lambda step, progress: min(1.0, (step + 1) / steps)


def _cool_down(warm_up: int, share: float) -> Callable[[int, float], float]:
    """Warm up, stay, and fall linearly to 0 over the last `share` of the stage."""
    return lambda step, progress: min(1.0, (step + 1) / warm_up, (1 - progress) / share)
