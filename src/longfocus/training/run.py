"""A recipe from data to trained model: `train_recipe(recipe, directory)`.

    documents (sources.py ...)  ->  rows  ->  method  ->  trainer  ->  DIR/model.safetensors, config.json, tokenizer

The directory holds recipe.json, data (tokens), checkpoints, metrics.jsonl, and at the end the model; the same recipe on
the same directory goes on where it stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from longfocus.errors import LongFocusError, extra
from longfocus.hf.layers import longest_window
from longfocus.training.adapters import with_adapters
from longfocus.training.contexts import parse_contexts
from longfocus.training.conversations import ConversationRows
from longfocus.training.crossbatch import Crossbatch, Plain
from longfocus.training.documents import Documents
from longfocus.training.methods import Method
from longfocus.training.mixture import Order
from longfocus.training.model import (
    focus_config,
    make_model,
    model_config,
    recipe_window,
)
from longfocus.training.output import DATA_FOLDER, open_output
from longfocus.training.places import place_of
from longfocus.training.ranks import Processes, first, leave, stopping_together, together
from longfocus.training.real_memory import RealMemory
from longfocus.training.recipe import ContinueRecipe, InstructRecipe, Recipe
from longfocus.training.recipe_tokenizer import open_tokenizer, tokenizer_place
from longfocus.training.rows import Rows, document_rows
from longfocus.training.saving import save_trained
from longfocus.training.schedule import parse_schedule
from longfocus.training.settings import Settings, check_trackers
from longfocus.training.sources import kind_of
from longfocus.training.stream import open_documents
from longfocus.training.tokenised import Report
from longfocus.training.trainer import Ended, TrainingStep, fit
from longfocus.training.transformer_xl import TransformerXL

REAL_MEMORY_WINDOWS = 32
DRAWN = 8
"""Plans of a mixture that are tried before training."""


@stopping_together()
def train_recipe(
    recipe: Recipe,
    directory: Path,
    *,
    report: Callable[[TrainingStep], None] = lambda step: None,
    prepare: Report = lambda what, done, total: None,
    tokens: Path | None = None,
) -> Ended:
    """Train by the recipe, going on where an earlier call was stopped, and save the model in `directory`.

    A finished directory is left as it is. `tokens` is where the data are kept as tokens; left out: in the directory.
    Raises LongFocusError for whatever cannot be used, before training where it can be known. Several
    processes (torchrun) all stop for what one of them raises; they stay in their group, which `joined` leaves.
    """
    processes = start_processes(recipe)
    together(lambda: check_places(recipe, directory))
    if first(lambda: open_output(directory, recipe)):
        return Ended("finished", None, 0)
    tokenizer = first(lambda: open_tokenizer(recipe, directory, prepare))
    cache = tokens or directory / DATA_FOLDER
    fitting = together(lambda: _ready(recipe, directory, cache, tokenizer, processes, prepare))
    return fitting(
        report=report, finish=lambda trainer: save_trained(trainer, recipe, tokenizer, directory)
    )


def _ready(
    recipe: Recipe,
    directory: Path,
    cache: Path,
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
    prepare: Report,
) -> Callable[..., Ended]:
    """`fit` with all that it needs of the recipe; what cannot work is refused before weights are loaded."""
    config = model_config(recipe, len(tokenizer))
    check_recipe(recipe, config)
    documents = _documents(recipe, cache, tokenizer, config, processes, prepare)
    rows = make_rows(recipe, documents, recipe_window(recipe, config))
    settings = make_settings(recipe, config, count_steps(recipe, config, documents, processes))
    method = make_method(recipe, config)
    model = with_adapters(make_model(recipe, config), recipe)
    return partial(fit, model, rows, method, directory, settings)


def steps_of(recipe: Recipe, directory: Path, config: PreTrainedConfig, prepare: Report) -> int:
    """How many steps a recipe has, which may take tokenising its data into `directory`."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    processes = start_processes(recipe)
    tokenizer = open_tokenizer(recipe, directory, prepare)
    cache = directory / DATA_FOLDER
    documents = _documents(recipe, cache, tokenizer, config, processes, prepare)
    return count_steps(recipe, config, documents, processes)


def _documents(
    recipe: Recipe,
    cache: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    processes: Processes,
    prepare: Report,
) -> Documents:
    return open_documents(
        recipe.sources,
        tokenizer,
        cache,
        seed=recipe.seed,
        epochs=None if recipe.max_steps is not None else recipe.epochs,
        rank=processes.rank,
        world_size=processes.count,
        vocab_size=config.vocab_size,
        report=prepare,
    )


def start_processes(recipe: Recipe) -> Processes:
    """Join the other processes if torchrun started several."""
    with extra("train", "Training"):
        from accelerate import PartialState
    state = PartialState(cpu=recipe.cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


@contextmanager
def joined(recipe: Recipe) -> Iterator[Processes]:
    """Inside, this process is one of those that torchrun started, which it leaves in the end, also after an error."""
    try:
        yield start_processes(recipe)
    finally:
        leave()


def check_places(recipe: Recipe, directory: Path) -> None:
    """Raise LongFocusError for data, a model or a tokenizer that are not there, before anything is fetched or made."""
    for source in recipe.sources:
        kind_of(source)
    tokenizer_place(recipe, directory)
    if isinstance(recipe, ContinueRecipe):
        place_of(recipe.model, "--model")


def check_recipe(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raise LongFocusError for what cannot work, before data are read or weights are loaded."""
    if recipe.fsdp and (recipe.cpu or not torch.cuda.is_available()):
        raise LongFocusError(
            "Accelerate shards models (--fsdp) on GPUs only. Leave it out: on CPUs every process holds the model."
        )
    check_trackers(recipe.report_to)
    if recipe.method != "crossbatch" and recipe.share_negatives:
        raise LongFocusError("Only crossbatch has negatives to share. Leave out --share-negatives.")
    if isinstance(recipe, InstructRecipe) and recipe.method not in ("crossbatch", "plain"):
        raise LongFocusError(
            f"Conversations are trained by crossbatch or plain. Got method={recipe.method!r}. Use `train continue`."
        )
    window = recipe_window(recipe, config)
    longest = longest_window(config)
    if longest is not None and window > longest:
        raise LongFocusError(
            f"window={window} is longer than the model's positions, {longest}. Pick a shorter one, or scale positions "
            "with --rope-scaling, such as yarn:4."
        )
    focus = focus_config(recipe, config)
    if recipe.method == "real_memory" and focus is not None and focus.positions == "true":
        raise LongFocusError(
            "Real memory has no places in one stream. Use --positions window_start or none, or crossbatch with d=1."
        )
    method = make_method(recipe, config)
    if isinstance(method, Crossbatch):
        check_plans(recipe, method)


def check_plans(recipe: Recipe, method: Crossbatch) -> None:
    """Draw plans with the largest d: an impossible one is refused before anything is done."""
    ranks = 1 if method.group is None else method.group.size()
    for seed in range(DRAWN if len(method.contexts.choices) > 1 else 1):
        generator = torch.Generator().manual_seed(seed)
        method.draw(ranks * recipe.batch_size, method.schedule.largest, generator)


def make_rows(recipe: Recipe, documents: Documents, window: int) -> Rows | ConversationRows:
    """The rows that the recipe's method wants."""
    windows = parse_contexts(recipe.contexts).windows if recipe.method == "crossbatch" else 1
    if isinstance(recipe, InstructRecipe):
        return ConversationRows(
            documents,
            batch_size=recipe.batch_size,
            length=window,
            windows=windows,
            seed=recipe.seed,
        )
    return document_rows(documents, batch_size=recipe.batch_size, length=window, packing=windows)


def make_method(recipe: Recipe, config: PreTrainedConfig) -> Method:
    window = recipe_window(recipe, config)
    if recipe.method == "plain":
        return Plain(mask_documents=recipe.mask_documents)
    if recipe.method == "transformer_xl":
        return TransformerXL(window)
    if recipe.method == "real_memory":
        return RealMemory(recipe.reach or REAL_MEMORY_WINDOWS * window)
    shares = recipe.share_negatives and distributed.is_initialized()
    focus = focus_config(recipe, config)
    return Crossbatch(
        parse_contexts(recipe.contexts),
        parse_schedule(recipe.d),
        seed=recipe.seed,
        accumulation=recipe.accumulation,
        group=distributed.group.WORLD if shares else None,
        one_stream=focus is not None and focus.positions == "true",
        mask_documents=recipe.mask_documents,
        detached=recipe.detach_contexts,
    )


def make_settings(recipe: Recipe, config: PreTrainedConfig, steps: int) -> Settings:
    arguments: dict[str, Any] = {}
    focus = focus_config(recipe, config)
    if recipe.fsdp:
        arguments = {
            "fsdp": True,
            "fsdp_config": {"version": 2, "auto_wrap_policy": "SIZE_BASED_WRAP"},
        }
    return Settings(
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        scheduler=recipe.scheduler,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optimizer=recipe.optimizer,
        temperature_rate=recipe.temperature_rate,
        memory_layers=() if focus is None else focus.memory_layers,
        accumulation=recipe.accumulation,
        bf16=recipe.bf16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        save_steps=recipe.save_steps,
        seed=recipe.seed,
        report_to=recipe.report_to,
        use_cpu=recipe.cpu,
        has_experts=any(hasattr(config, name) for name in ("num_experts", "num_local_experts")),
        arguments=arguments,
    )


def tokens_per_step(recipe: Recipe, window: int, processes: int = 1) -> int:
    return recipe.batch_size * recipe.accumulation * window * processes


def count_steps(
    recipe: Recipe, config: PreTrainedConfig, documents: Any, processes: Processes
) -> int:
    """Steps of the recipe; where they are given in epochs, enough for all tokens of the corpus."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    assert isinstance(documents, Order)
    if isinstance(recipe, InstructRecipe):
        windows = parse_contexts(recipe.contexts).windows if recipe.method == "crossbatch" else 1
        per_step = recipe.batch_size // windows * recipe.accumulation * processes.count
        return max(1, -(-len(documents.corpus) * recipe.epochs // per_step))
    per_step = tokens_per_step(recipe, recipe_window(recipe, config), processes.count)
    return max(1, -(-documents.corpus.tokens * recipe.epochs // per_step))
