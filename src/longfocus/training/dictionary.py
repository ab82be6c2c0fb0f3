"""`longfocus train dictionary`: a small stock model learns the paper's dictionary lookup task from scratch.

    curriculum   3, 6, 12, 25 records per window, d = 1     each until the model answers 95% (98%)
    crossbatch   25 records per window, d = documents       every asking window sees all previous windows;
                                                            hard negatives: keys over small alphabets

The paper (section 5.1) trains 37M parameters with d = 1 until 98%, then d = 128. Two additions make minutes on a
laptop enough: the curriculum, and keys that nearly collide. The model is a stock Qwen3: q_norm and k_norm hold
the paper's normalised queries and keys, and their weights in the memory layer its learnable temperature. No
positions in the memory layer.

In the crossbatch stage the temperature learns slowly. A softmax that gets sharp early answers right among the
8,192 keys of a step while the right key stands only a little above the others; one that stays soft forces it far
above them. When training is over, the softmax is made as sharp as a memory of millions of keys needs: `sharpen`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core import dictionary_task as task
from longfocus.errors import LongFocusError
from longfocus.training.loop import LoopSettings, Outcome, Progress, Stage, StepResult, train
from longfocus.training.output import RECIPE_FILE, open_output

TRAINING_FOLDER = "training"
SUMMARY_FILE = "training.json"
KIND = "dictionary"


@dataclass(frozen=True, kw_only=True)
class DictionaryRecipe:
    """Every choice of a training; `recipe.json` beside the result is enough to run it again."""

    seed: int = 0
    """Of weights and data."""
    cpu_minutes: float = 28.0
    """Processor minutes of all threads; on a slower machine the crossbatch stage is shortened to fit."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 128
    """One wide key per token tells more records apart than two of half the width, at the same memory."""
    memory_layer: int = 2
    rope_theta: float = 100.0
    """Windows are short: with 10,000 learning takes longer."""

    curriculum: tuple[int, ...] = (3, 6, 12, 25)
    """Records per window of the stages with d = 1."""
    curriculum_rows: int = 64
    """A stage has as many documents as hold so many records, at least `curriculum_documents`."""
    curriculum_documents: int = 16
    curriculum_accuracy: tuple[float, float] = (0.95, 0.98)
    """Smoothed accuracy that ends a stage: all but the last, the last."""
    curriculum_steps: int = 1500
    """A curriculum stage ends after so many steps at the latest."""
    curriculum_rate: float = 3e-3
    """AdamW learning rate, reached after 50 steps."""

    documents: int = 32
    """Crossbatch stage: previous windows per step, all of them seen by every asking window (d)."""
    asking: int = 8
    """Documents that are asked: their current windows are computed too."""
    steps: int = 400
    alphabets: tuple[int, ...] = (60, 12, 8, 6)
    """Symbols per place of a key, one size chosen at random per step; small ones make hard negatives."""
    rate: float = 2e-3
    """AdamW learning rate after 20 steps, cooled down linearly to 0 over the last `cooldown` of the stage."""
    cooldown: float = 0.7
    temperature_factor: float = 0.3
    """Learning rate of q_norm and k_norm of the memory layer, as a multiple of `rate`, in the crossbatch stage."""
    sharpen: float = 4.0
    """Factor on the scores of the memory layer, multiplied into its q_norm after training; chosen on other seeds
    than those of the evaluation."""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DictionaryRecipe":
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known - {"kind"})
        if values.get("kind") != KIND or unknown:
            raise LongFocusError(
                f"This is not a recipe of `longfocus train dictionary`: kind {values.get('kind')!r}, unknown "
                f"entries {unknown}. Choose the {RECIPE_FILE} that it wrote, or train into an empty directory."
            )
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        return cls(**entries)


def train_dictionary(
    recipe: DictionaryRecipe,
    directory: Path,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train by the recipe and save the model in `directory`, going on where an earlier call was stopped.

    `directory/training` holds the checkpoint and metrics, `training.json` the stages.
    A finished directory is left as it is.
    """
    if open_output(directory, recipe.to_dict()):
        return Outcome("finished", None, [])
    model = make_model(recipe)
    settings = LoopSettings(seed=recipe.seed, cpu_minutes=recipe.cpu_minutes)
    outcome = train(
        model, stages(model, recipe), directory / TRAINING_FOLDER, settings, report=report
    )
    if outcome.ending == "finished":
        _save(model, recipe, outcome, directory)
    return outcome


def _save(model: Any, recipe: DictionaryRecipe, outcome: Outcome, directory: Path) -> None:
    """The model in bf16 with its sharpened scores, and how long each stage took."""
    with torch.no_grad():
        model.model.layers[recipe.memory_layer].self_attn.q_norm.weight.mul_(recipe.sharpen)
    (directory / SUMMARY_FILE).write_text(json.dumps({"stages": outcome.stages}, indent=1) + "\n")
    model.to(torch.bfloat16).save_pretrained(directory)


def make_model(recipe: DictionaryRecipe) -> Any:
    """The untrained model with its memory attached; the same seed gives the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from longfocus.hf.attach import attach

    config = Qwen3Config(
        vocab_size=task.VOCABULARY,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=task.WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=False,
        initializer_range=recipe.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=task.PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = Qwen3ForCausalLM(config)
        _draw_weights(model, recipe)
    focus = FocusConfig(
        memory_layers=(recipe.memory_layer,),
        window=task.WINDOW,
        positions="none",
        memory_dtype="bfloat16",
    )
    # Says that this model has a memory of its own, so that attach does not warn of an untrained one.
    model.config.focus = focus.to_dict()
    attach(model, focus)
    # At these lengths its backward pass takes half the time of the fused one on CPUs. It is not saved.
    model.set_attn_implementation("eager")
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


def stages(model: Any, recipe: DictionaryRecipe) -> list[Stage]:
    """The curriculum with d = 1, then crossbatch with every document of the batch."""
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
    hard = Stage(
        name=f"{recipe.curriculum[-1]} records, d={recipe.documents}",
        step=_crossbatch_step(model, recipe),
        optimizers=lambda: [_adamw(model, recipe, recipe.rate, recipe.temperature_factor)],
        steps=recipe.steps,
        schedule=_cool_down(20, recipe.cooldown),
    )
    return [*easy, hard]


def _curriculum_step(
    model: Any, recipe: DictionaryRecipe, records: int
) -> Callable[[torch.Generator], StepResult]:
    from longfocus.core.plans import paper_plan

    documents = max(recipe.curriculum_documents, recipe.curriculum_rows // records)
    plan = paper_plan(documents, d=1)

    def step(generator: torch.Generator) -> StepResult:
        batch = task.training_batch(documents, documents, records, task.SYMBOLS, generator)
        return _answer(model, batch, plan)

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
        return _answer(model, batch, plan)

    return step


def _answer(model: Any, batch: task.TaskBatch, plan: Tensor) -> StepResult:
    """Loss and accuracy on the answer tokens of a crossbatch batch."""
    output = model(
        input_ids=batch.input_ids, labels=batch.labels, additional_contexts=plan, use_cache=False
    )
    expected = batch.labels[:, 1:]
    asked = expected != task.IGNORED
    right = output.logits[:, :-1].detach()[asked].argmax(-1) == expected[asked]
    return StepResult(output.loss, right.float().mean().item(), batch.input_ids.numel())


def _adamw(
    model: Any, recipe: DictionaryRecipe, rate: float, temperature_factor: float
) -> torch.optim.Optimizer:
    attention = model.model.layers[recipe.memory_layer].self_attn
    temperature = [attention.q_norm.weight, attention.k_norm.weight]
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
