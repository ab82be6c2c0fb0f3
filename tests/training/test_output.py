"""Which folder a training goes on in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longfocus.errors import LongFocusError
from longfocus.training.dictionary_recipe import DictionaryRecipe
from longfocus.training.output import RECIPE_FILE, open_output

RECIPE = DictionaryRecipe(seed=3)


def begun(folder: Path) -> Path:
    """A folder in which a training has begun."""
    assert not open_output(folder, RECIPE)
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_training_goes_on_by_its_own_recipe_alone(tmp_path: Path) -> None:
    begun(tmp_path)
    assert not open_output(tmp_path, replace(RECIPE, cpu_minutes=1.0))
    with pytest.raises(LongFocusError, match="seed: there 3, asked 4"):
        open_output(tmp_path, replace(RECIPE, seed=4))


def test_what_an_older_recipe_does_not_have_was_left_at_its_default(tmp_path: Path) -> None:
    file = begun(tmp_path) / RECIPE_FILE
    older = json.loads(file.read_text())
    del older["positions"], older["curriculum"]
    file.write_text(json.dumps(older))
    with pytest.raises(LongFocusError, match="positions: there 'none', asked 'true'"):
        open_output(tmp_path, replace(RECIPE, positions="true"))
    assert not open_output(tmp_path, RECIPE)
    # it is written as it is now
    assert json.loads(file.read_text())["positions"] == "none"
