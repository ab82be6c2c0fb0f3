"""Trains the code model from random weights: a stock Qwen3 of 2.5M parameters with one memory layer.

    OUTPUT/            the model: trunk + phases `compete` and `refine`, with d up to 48
    OUTPUT/control/    the control: trunk + the same phases with d = 1, as many steps
    OUTPUT/data/       corpus, tokenizer and words, shared by both
    OUTPUT/training/   checkpoints and metrics: trunk (phases find-1 .. find-4, d = 1), compete,
                       refine, and control/ with those two again

One memory layer on purpose: its keys and values do not depend on the memory, so reading is linear in the text.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

import longfocus
from longfocus.config import FocusConfig
from longfocus.training.code_batches import Batches
from longfocus.training.code_data import CodeData, Prepare, prepare_data
from longfocus.training.code_recipe import CodeRecipe, Phase
from longfocus.training.loop import Outcome, Progress, train
from longfocus.training.optimizers import divided, muon_and_adamw
from longfocus.training.output import open_output
from longfocus.training.passkey_task import DIGITS, WORDS_FILE
from longfocus.training.stages import LoopSettings, Stage, StepResult
from longfocus.training.temperature import sharpen

CONTROL = "control"

Report = Callable[[Progress], None]


def train_code(
    recipe: CodeRecipe,
    output: Path,
    *,
    report: Report = lambda progress: None,
    prepare: Prepare = lambda what, done, total: None,
) -> Outcome:
    """Makes the model in `output` and the control beside it, going on where an earlier call stopped.

    The recipe's CPU minutes are the budget of the model's training; the control then gets as many steps,
    whatever they cost. A finished directory is left as it is.
    """
    model_is_done = open_output(output, recipe)
    control_recipe = replace(recipe, control=True)
    if model_is_done and open_output(output / CONTROL, control_recipe):
        return Outcome("finished", None, [])
    data = prepare_data(output / "data", recipe, prepare)
    files = output / "training"
    trunk = build_model(recipe)
    batches = Batches(recipe, data.corpus, data.tokenizer, data.words.train)
    settings = LoopSettings(seed=recipe.seed, cpu_minutes=recipe.cpu_minutes, smoothing=0.95)
    found = train(
        trunk, _find_stages(trunk, batches, recipe), files / "trunk", settings, report=report
    )
    if found.ending == "interrupted":
        return found
    minutes = found.stages[-1]["cpu_seconds"] / 60
    settings = replace(settings, seed=recipe.seed + 1, cpu_minutes=settings.cpu_minutes - minutes)
    branch = _Branch(trunk.state_dict(), data, found, settings, report)
    outcome = branch.train(recipe, files, output)
    if outcome.ending == "finished":
        open_output(output / CONTROL, control_recipe)
        same_steps = equal_steps(control_recipe, outcome)
        outcome = branch.train(same_steps, files / CONTROL, output / CONTROL)
    return outcome


def equal_steps(control: CodeRecipe, model: Outcome) -> CodeRecipe:
    """The control's recipe with as many steps in each phase as the model took, whatever they cost."""
    compete, refine = (stage["steps"] for stage in model.stages)
    return replace(
        control,
        compete=replace(control.compete, steps=compete),
        refine=replace(control.refine, steps=refine),
        cpu_minutes=math.inf,
    )


def build_model(recipe: CodeRecipe) -> Qwen3ForCausalLM:
    """The model with random weights of the recipe's seed, memory attached."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_size,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=recipe.window,
        initializer_range=recipe.hidden_size**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    # short windows train faster without the fused kernel
    model.set_attn_implementation("eager")
    with torch.no_grad():
        nn.init.normal_(model.model.embed_tokens.weight)
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.mul_((2 * recipe.layers) ** -0.5)
    focus = FocusConfig(
        memory_layers=(recipe.memory_layer,), window=recipe.window, positions="none"
    )
    longfocus.attach(model, focus, verify=False)
    return model


def code_loss(
    model: nn.Module, batches: Batches, phase: Phase, generator: torch.Generator
) -> StepResult:
    """One batch: mean loss over code tokens + weighted mean loss over answer digits.

    Accuracy is the share of questions with all five digits right, given the right ones before.
    """
    batch, _ = batches.draw(phase, generator)
    logits = model(input_ids=batch.ids, additional_contexts=batch.plan).logits[:, :-1]
    targets, digits, code = batch.ids[:, 1:], batch.digits[:, 1:], batch.code[:, 1:]
    answers, right = logits[digits].float(), targets[digits]
    loss = batches.recipe.digit_weight * nn.functional.cross_entropy(answers, right)
    if code.any():
        loss = loss + nn.functional.cross_entropy(logits[code].float(), targets[code])
    exact = (answers.argmax(-1) == right).view(-1, DIGITS).all(-1).float().mean()
    return StepResult(loss, exact.item(), batch.ids.numel())


def optimizers(model: nn.Module, recipe: CodeRecipe, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; the memory layer's temperature has its own rate."""
    return muon_and_adamw(
        divided(model, (recipe.memory_layer,)),
        matrix_rate=recipe.matrix_rate,
        other_rate=recipe.other_rate,
        temperature_rate=phase.temperature_rate,
        matrix_decay=recipe.matrix_decay,
    )


def _stage(model: nn.Module, batches: Batches, phase: Phase, budget_share: float = 1.0) -> Stage:
    recipe = batches.recipe

    def rate(step: int, progress: float) -> float:
        warm_up = min(1.0, (step + 1) / recipe.warm_up_steps)
        return warm_up * (min(1.0, (1 - progress) / phase.cool_down) if phase.cool_down else 1.0)

    return Stage(
        name=phase.name,
        step=lambda generator: code_loss(model, batches, phase, generator),
        optimizers=lambda: optimizers(model, recipe, phase),
        steps=phase.steps,
        until_accuracy=phase.until_accuracy if phase.until_accuracy < 1 else math.inf,
        budget_share=budget_share,
        schedule=rate,
    )


def _find_stages(model: nn.Module, batches: Batches, recipe: CodeRecipe) -> Sequence[Stage]:
    """The trunk's phases; optimizers are kept from one to the next."""
    phases = len(recipe.find)
    # the first phase, in which nothing is known yet, may use half of the trunk's budget
    shares = [recipe.trunk_share * (0.5 + 0.5 * (i + 1) / phases) for i in range(phases)]
    stages = [
        _stage(model, batches, phase, share)
        for phase, share in zip(recipe.find, shares, strict=True)
    ]
    return [
        stages[0],
        *(replace(stage, optimizers=None, schedule=_full_rate) for stage in stages[1:]),
    ]


def _full_rate(step: int, progress: float) -> float:
    return 1.0


@dataclass(frozen=True)
class _Branch:
    """The last phase, from the trunk's weights."""

    weights: dict[str, Tensor]
    data: CodeData
    found: Outcome
    settings: LoopSettings
    report: Report

    def train(self, recipe: CodeRecipe, files: Path, output: Path) -> Outcome:
        """Trains the phases `compete` and `refine` and saves the model in `output`."""
        model = build_model(recipe)
        model.load_state_dict(self.weights)
        batches = Batches(recipe, self.data.corpus, self.data.tokenizer, self.data.words.train)
        left = math.inf if recipe.control else self.settings.cpu_minutes
        compete = self._phase(model, batches, recipe.compete, files, left * recipe.compete_share)
        if compete.ending == "interrupted":
            return compete
        sharpen(model, recipe.sharpening)
        left -= compete.stages[-1]["cpu_seconds"] / 60
        refine = self._phase(model, batches, recipe.refine, files, left)
        outcome = refine._replace(stages=[*compete.stages, *refine.stages])
        if outcome.ending == "finished":
            self.save(model, recipe, outcome, output)
        return outcome

    def _phase(
        self, model: Any, batches: Batches, phase: Phase, files: Path, cpu_minutes: float
    ) -> Outcome:
        settings = replace(self.settings, cpu_minutes=cpu_minutes)
        stages = [_stage(model, batches, phase)]
        return train(model, stages, files / phase.name, settings, report=self.report)

    def save(self, model: Any, recipe: CodeRecipe, outcome: Outcome, output: Path) -> None:
        """Model, tokenizer, test words and a summary; `config.json` comes last and says that all is there."""
        output.mkdir(parents=True, exist_ok=True)
        self.data.tokenizer.save_pretrained(output)
        summary = {
            "phases": [*self.found.stages, *outcome.stages],
            "compete": asdict(recipe.compete),
            "refine": asdict(recipe.refine),
            "control": recipe.control,
            "data": self.data.source,
        }
        (output / "training.json").write_text(json.dumps(summary, indent=1) + "\n")
        (output / WORDS_FILE).write_text(
            json.dumps({"test": self.data.words.test}, indent=0) + "\n"
        )
        model.to(torch.bfloat16).save_pretrained(output)
