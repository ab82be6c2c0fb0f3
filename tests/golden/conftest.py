"""A published checkpoint with the settings of one case."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_cases import Case
from transformers import PreTrainedModel

import longfocus


@pytest.fixture
def published_model(tmp_path: Path) -> Callable[[Case], PreTrainedModel]:
    """Loads a case's checkpoint as a user would: a directory with config.json and weights."""

    def load(case: Case) -> PreTrainedModel:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(case.config))
        (folder / "model.safetensors").symlink_to(
            (case.model_folder / "model.safetensors").resolve()
        )
        return longfocus.from_pretrained(folder)

    return load
