"""`longfocus train language`: options make the recipe, one command trains, the same command has nothing left to do."""

from pathlib import Path

import pytest
import torch

from longfocus.cli import train_language
from longfocus.cli.main import main, parse
from longfocus.cli.train_language import recipe_of
from longfocus.training import language
from longfocus.training.language_recipe import VARIANTS, LanguageRecipe
from longfocus.training.trainer import Ended

COMMAND = ["train", "language", "--output"]


def recipe(*options: str) -> LanguageRecipe:
    return recipe_of(parse([*COMMAND, "x", *options]).arguments)


def test_options_change_the_recipe_and_nothing_else() -> None:
    assert recipe() == LanguageRecipe()
    given = recipe("--seed", "2", "--base-steps", "5", "--steps", "7")
    assert given == LanguageRecipe(seed=2, base_steps=5, steps=7)


def test_no_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "x", "--steps", "0"]) == 2
    assert "There must be at least 1 step" in capsys.readouterr().err


def test_the_large_recipe_wants_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    large = recipe("--large", "--seed", "1")
    assert not large.cpu
    assert (large.hidden_size, large.seed) == (512, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*COMMAND, "x", "--large"]) == 2
    assert "--large trains on a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended", "code"), [(Ended("finished", None, 3), 0), (Ended("interrupted", 15, 3), 143)]
)
def test_what_is_asked_for_is_trained_and_the_exit_code_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Ended, code: int
) -> None:
    calls: list[dict] = []

    def train(recipe: LanguageRecipe, output: Path, **options) -> Ended:
        calls.append({"recipe": recipe, "output": output, **options})
        return ended

    monkeypatch.setattr(language, "train_language", train)
    options = ["--only", "plain", "fot", "--data-folder", str(tmp_path / "data")]
    assert main([*COMMAND, str(tmp_path), *options]) == code
    (call,) = calls
    assert call["recipe"] == LanguageRecipe()
    assert (call["output"], call["data"]) == (tmp_path, tmp_path / "data")
    assert set(call["only"]) == {"plain", "fot"}


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*COMMAND, "x", "--only", "nobody"])
    assert "nobody" in capsys.readouterr().err


def test_all_variants_are_trained_where_none_is_named() -> None:
    arguments = parse([*COMMAND, "x"]).arguments
    assert isinstance(arguments, train_language.Arguments)
    assert arguments.only == VARIANTS
