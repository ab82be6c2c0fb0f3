"""A tiny model and corpus for tests of the trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import longfocus
from longfocus.training.contexts import parse_contexts
from longfocus.training.crossbatch import Crossbatch
from longfocus.training.rows import Document, Rows, document_rows
from longfocus.training.schedule import parse_schedule
from longfocus.training.settings import Settings
from longfocus.training.trainer import Ended, fit

WINDOW, VOCABULARY = 16, 50
QUIET: dict[str, Any] = {"use_cpu": True, "bf16": False, "learning_rate": 1e-2}


def tiny_model(*, memory: bool = True, merge: Any = "joint") -> Any:
    """The same weights whenever it is called."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    model = Qwen3ForCausalLM(config)
    if memory:
        focus = longfocus.FocusConfig(memory_layers=(1,), window=WINDOW, merge=merge)
        model.config.focus = focus.to_dict()
        longfocus.attach(model, focus, verify=False)
    return model


def texts(
    number: int = 40, seed: int = 0, shortest: int = 20, longest: int = 150
) -> list[Document]:
    """Documents of many lengths, longer than a batch and shorter than a window among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest, size=number)
    return [
        Document(rng.integers(1, VOCABULARY, size=size), rng.random(size) < 0.9, "tiny")
        for size in lengths
    ]


def rows(packing: int = 2, batch_size: int = 8) -> Rows:
    return document_rows(texts(), batch_size=batch_size, length=WINDOW, packing=packing)


def crossbatch(contexts: str = "paper", d: str = "2,4", **options: Any) -> Crossbatch:
    return Crossbatch(parse_contexts(contexts), parse_schedule(d), **options)


def run(directory: Path, steps: int, **changes: Any) -> tuple[Any, Ended]:
    """Fit a new model in `directory`; returns it and how the training ended."""
    model = changes.pop("model", None) or tiny_model()
    method = changes.pop("method", None) or crossbatch()
    report = changes.pop("report", lambda step: None)
    finish = changes.pop("finish", lambda trainer: None)
    given_rows = changes.pop("rows", None) or rows()
    directory.mkdir(exist_ok=True, parents=True)
    settings = Settings(max_steps=steps, **{"save_steps": 3, **QUIET, **changes})
    return model, fit(model, given_rows, method, directory, settings, report=report, finish=finish)


def losses(directory: Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def same_weights(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
