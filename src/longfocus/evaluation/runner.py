"""Runs an experiment cell by cell, and describes a run so that it can be repeated."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import torch

from longfocus.evaluation.experiment import Cell, Experiment, Settings
from longfocus.evaluation.given_files import file_hash, hashes
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.evaluation.results import Results
from longfocus.evaluation.source_lines import WORDS_FILE
from longfocus.evaluation.speed import machine
from longfocus.evaluation.subject import Subject
from longfocus.hf.fingerprint import hash_weight, model_fingerprint, tokenizer_fingerprint


def run(
    experiment: Experiment,
    settings: Settings,
    subject: Subject,
    results: Results,
    tell: Callable[[float, str], None] = lambda share, text: None,
) -> None:
    """Measure the cells that `results` does not have yet, one after the other; each is kept as soon as it is finished.

    `tell` is told which share of them is done, by tokens, and what is going on.
    """
    waiting = [cell for cell in experiment.cells(settings) if not results.has(cell)]
    # one more than all: it is not at its end before the last cell is kept
    total, done = 1 + sum(cell["tokens"] for cell in waiting), 0
    for cell in waiting:

        def tell_cell(read: int, text: str, cell: Cell = cell, done: int = done) -> None:
            name = ", ".join(f"{key} {value}" for key, value in cell.items())
            share = min(1.0, read / max(subject.expected, 1))
            tell((done + share * cell["tokens"]) / total, f"{name}: {text}")

        subject.begin(cell, tell_cell)
        with subject.costs.watched():
            records = list(experiment.records(subject, settings, cell))
        row = {**cell, **experiment.row(records), **subject.costs.row()}
        results.add(cell, row, records)
        done += cell["tokens"]


def described(
    name: str, settings: Settings, memory: MemoryOptions, subject: Subject, **more: Any
) -> dict[str, Any]:
    """Everything that a run depends on. `more` is how it was called, and how the model is named."""
    model, prefix = subject.model, subject.window_prefix
    focus = model.focus.config.to_dict() if subject.has_memory else None
    return {
        "experiment": name,
        **more,
        "settings": settings.to_dict(),
        "files": hashes(settings),
        "words": file_hash(subject.folder / WORDS_FILE),
        "memory": memory.to_dict(),
        "window_prefix": prefix,
        "focus": focus,
        "fingerprint": {
            **(model_fingerprint(model, every_layer=True) if focus else _plain(model)),
            "output": _hash(model.get_output_embeddings().parameters()),
            "tokenizer": tokenizer_fingerprint(subject.tokenizer),
            "chat_template": _template(subject.tokenizer),
            "end_tokens": model.generation_config.eos_token_id,
        },
        "versions": machine.versions(),
        "hardware": {**machine.hardware(), "device": str(model.device)},
        "threads": torch.get_num_threads(),
    }


def _plain(model: Any) -> dict[str, str]:
    """What tells a model without memory from others."""
    return {
        "architecture": str(model.config.model_type),
        "settings": _short(model.config.to_json_string()),
        "weights": _hash(model.state_dict().values()),
    }


def _template(tokenizer: Any) -> str | None:
    """What stands around a question; not every experiment has a tokenizer, and not every tokenizer a template."""
    template = getattr(tokenizer, "chat_template", None)
    return _short(str(template)) if template else None


def _hash(weights: Iterable[torch.Tensor]) -> str:
    return _short(" ".join(map(hash_weight, weights)))


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:32]
