"""Where the golden data lies, and how a case is read.

Every folder beside `open` that is laid out like it (another set of cases of the same kinds) is run as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (REPOSITORY.parent / "shared" / "golden", Path(__file__).resolve().parent / "data")


def golden_root() -> Path:
    """The data beside the repository where there is one, else the copy that travels with it."""
    return next(place for place in PLACES if (place / "open").is_dir())


@dataclass(frozen=True)
class Case:
    """One JSON file and the tensors beside it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        if (arrays := self.path.with_suffix(".npz")).exists():
            numbers = {name: x for name, x in np.load(arrays).items() if x.dtype.kind in "fi"}
            return {name: torch.from_numpy(x) for name, x in numbers.items()}
        return load_file(self.path.with_suffix(".safetensors"))

    def tensor(self, name: str | None) -> Tensor | None:
        """The tensor that a field of the description names; None where the field is null."""
        return None if name is None else self.tensors[name]

    @property
    def tolerance(self) -> dict[str, Any]:
        return self.description["tolerance"]

    @property
    def model_folder(self) -> Path:
        return self.path.parent / self.description["model"]

    @property
    def config(self) -> dict[str, Any]:
        """What the model of this case is: its config.json with the case's own settings on top."""
        return {
            **json.loads((self.model_folder / "config.json").read_text()),
            **self.description["config"],
        }


def cases(kind: str) -> list[Case]:
    """All cases of a kind (a folder name), sorted: `inference`, `crossbatch`, `train_step` or `pipeline`."""
    return [Case(path) for path in sorted(case_files(kind))]


def case_files(kind: str) -> Iterator[Path]:
    for folder in golden_root().glob(f"*/{kind}"):
        holds = folder / "cases" if (folder / "cases").is_dir() else folder
        yield from (path for path in holds.glob("*.json") if path.name != "index.json")


def name_of(value: object) -> str:
    """Test identifier of a case."""
    return value.name if isinstance(value, Case) else str(value)


def relative_norm_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()
