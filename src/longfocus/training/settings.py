"""How weights change, as transformers' TrainingArguments want to be told."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from longfocus.core.processor import multiplies
from longfocus.errors import LongFocusError
from longfocus.training import checkpoints

TRACKERS = (
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)
"""Those of transformers that are named as their packages."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How weights change; everything else is the method's or the data's."""

    max_steps: int
    learning_rate: float = 2e-5
    """LongLLaMA's."""
    warmup_steps: int = 0
    scheduler: str = "constant_with_warmup"
    """Any of transformers' learning rate schedules."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    temperature_rate: float = 1.0
    """muon: factor on the learning rate of q_norm and k_norm of `memory_layers`."""
    memory_layers: tuple[int, ...] = ()
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulation: int = 1
    """Micro-batches per step, on every process."""
    bf16: bool = True
    """Compute in bfloat16 where autocast says so and `is_narrow`; weights keep their type."""
    gradient_checkpointing: bool = False
    save_steps: int = 200
    """Steps between two checkpoints; the last two are kept."""
    seed: int = 0
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows and that are installed, such as "tensorboard"."""
    use_cpu: bool = False
    has_experts: bool = False
    """Some weights may take no part in a step."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """More of transformers' TrainingArguments, such as `fsdp`."""


def training_device(*, use_cpu: bool) -> torch.device:
    """What trains here: a GPU if it may and there is one."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")


def is_narrow(*, use_cpu: bool) -> bool:
    """Whether what trains here should compute in bfloat16."""
    return multiplies(torch.bfloat16, training_device(use_cpu=use_cpu))


def training_arguments(directory: Path, settings: Settings) -> TrainingArguments:
    """With checkpoints below `directory`, every step logged, and data left to the rows."""
    chosen: dict[str, Any] = {
        "output_dir": str(directory / checkpoints.FOLDER),
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_accumulation_steps": settings.accumulation,
        "bf16": settings.bf16 and is_narrow(use_cpu=settings.use_cpu),
        "activation_checkpointing": settings.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "seed": settings.seed,
        "use_cpu": settings.use_cpu,
        "report_to": list(settings.report_to) or "none",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "ignore_data_skip": True,
        "remove_unused_columns": False,
        "log_level": "error",
        # experts that no token chose get no gradient
        "ddp_find_unused_parameters": settings.has_experts,
        **settings.arguments,
    }
    return TrainingArguments(**chosen)


def check_trackers(names: Sequence[str]) -> None:
    """Raise LongFocusError for a tracker that transformers does not know, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise LongFocusError(
                f"{name!r} is not a tracker that transformers knows. Allowed: "
                f"{', '.join(TRACKERS)}. metrics.jsonl is written without any."
            )
        if importlib.util.find_spec(name) is None:
            raise LongFocusError(
                f"The tracker {name!r} needs a package that is not installed: pip install {name}. metrics.jsonl is "
                "written without any."
            )
