"""What a finished training leaves in its directory: a model that can be loaded, its tokenizer, and a summary."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from longfocus.training.adapters import without_adapters
from longfocus.training.model import make_model, model_config
from longfocus.training.output import MODEL_FILE
from longfocus.training.recipe import Recipe
from longfocus.training.trainer import FocusTrainer

SUMMARY_FILE = "training.json"
"""Steps, tokens and processor seconds (of this process), those before a resume included."""


def save_trained(
    trainer: FocusTrainer, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """The trained model beside its recipe; config.json comes last, for it says that training is finished."""
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    staged = directory / "model.part"
    full = replace(recipe, quantize=None)
    with TemporaryDirectory(dir=directory) as folder:
        saved: Any = without_adapters(
            model, recipe, Path(folder), lambda: make_model(full, model_config(full))
        )
    saved.save_pretrained(staged, **({} if weights is None else {"state_dict": weights}))
    tokenizer.save_pretrained(staged)
    summary = {
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens,
        "cpu_seconds": trainer.cpu_seconds,
        "processes": trainer.args.world_size,
    }
    (staged / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n")
    for file in sorted(staged.iterdir(), key=lambda file: file.name == MODEL_FILE):
        file.replace(directory / file.name)
    staged.rmdir()
