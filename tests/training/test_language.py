"""Language models: variants start from one base and read as many tokens; a stopped run goes on; all can be loaded."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import RECIPE, make_packages
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import longfocus
from longfocus.errors import LongFocusError
from longfocus.training.contexts import parse_contexts
from longfocus.training.language import train_language
from longfocus.training.language_data import prepare_language_data
from longfocus.training.language_recipe import VARIANTS, LanguageRecipe, Variant, large_recipe
from longfocus.training.model import model_config
from longfocus.training.recipe import ContinueRecipe
from longfocus.training.run import check_recipe
from longfocus.training.trainer import TrainingStep

WITH_MEMORY = ("fot", "memorizing", "fot_d1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small wait for each other with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    packages, library = make_packages(folder)
    prepare_language_data(folder / "data", RECIPE, packages=packages, library=library)
    return folder / "data"


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and all variants whose learning rate is 0."""
    output = tmp_path_factory.mktemp("models") / "out"
    assert train_language(replace(RECIPE, rate=0.0), output, data=data).ending == "finished"
    return output


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_starts_from_the_bases_weights(trained: Path, name: str) -> None:
    base, found = (load_file(trained / part / "model.safetensors") for part in ("base", name))
    new = set(found) - set(base)
    # the gates of the Memorizing Transformer are its own
    assert all("gate" in key for key in new)
    assert bool(new) is (name == "memorizing")
    assert all(torch.equal(weight, found[key]) for key, weight in base.items())


def test_every_variant_reads_as_many_tokens_and_leaves_no_checkpoints(trained: Path) -> None:
    told = json.loads((trained / "summary.json").read_text())
    assert list(told) == ["base", *VARIANTS]
    assert {told[name]["tokens"] for name in VARIANTS} == {3 * 8 * 16}
    assert {told[name]["steps"] for name in VARIANTS} == {3}
    assert all(summary["cpu_seconds"] > 0 for summary in told.values())
    for name in told:
        lines = (trained / name / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["tokens"] == told[name]["tokens"]
        assert 0 < last["cpu_seconds"] <= told[name]["cpu_seconds"]
        assert not (trained / name / "checkpoints").exists()


@pytest.mark.parametrize("name", ["base", *VARIANTS])
def test_what_is_trained_can_be_loaded(trained: Path, name: str) -> None:
    if name == "base" or name in WITH_MEMORY:
        model = longfocus.from_pretrained(trained / name)
        focus = model.focus.config
        assert (focus.memory_layers, focus.window, focus.positions) == ((1,), 16, "none")
        assert focus.merge == ("gate" if name == "memorizing" else "joint")
    else:
        model = AutoModelForCausalLM.from_pretrained(trained / name)
        assert not hasattr(model.config, "focus")
    # a row of `plain`, and the windows of a document that is read
    assert model.config.max_position_embeddings == 4 * 16
    assert model(torch.arange(50)[None]).logits.isfinite().all()


def test_the_same_command_does_nothing_more_and_another_recipe_is_refused(
    trained: Path, data: Path
) -> None:
    recipe = replace(RECIPE, rate=0.0)
    steps: list[Any] = []
    train_language(recipe, trained, data=data, report=lambda *told: steps.append(told))
    assert not steps
    with pytest.raises(LongFocusError, match="seed: there 0, asked 1"):
        train_language(replace(recipe, seed=1), trained, data=data)


def stop_at(name: str, number: int) -> Callable[[str, TrainingStep], None]:
    def report(model: str, step: TrainingStep) -> None:
        if (model, step.step) == (name, number):
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.long
def test_a_resumed_run_equals_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    only: tuple[Variant, ...] = ("fot",)
    assert train_language(RECIPE, tmp_path / "whole", data=data, only=only).ending == "finished"
    for name in ("base", "fot"):
        # a signal is heeded at the end of the next step
        stop = stop_at(name, 1)
        ended = train_language(RECIPE, tmp_path / "parts", data=data, only=only, report=stop)
        assert (ended.ending, ended.steps) == ("interrupted", 2)
    train_language(RECIPE, tmp_path / "parts", data=data, only=only)
    assert not (tmp_path / "whole" / "plain").exists()
    for name in ("base", *only):
        whole, parts = (
            (tmp_path / run / name / "model.safetensors").read_bytes() for run in ("whole", "parts")
        )
        assert whole == parts
        tokens = [
            json.loads((tmp_path / run / "summary.json").read_text())[name]["tokens"]
            for run in ("whole", "parts")
        ]
        assert tokens[0] == tokens[1]
        lines = (tmp_path / "parts" / name / "metrics.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["cpu_seconds"] for line in lines]
        assert len(seconds) == 3
        assert seconds == sorted(seconds)


@pytest.mark.parametrize("recipe", [LanguageRecipe(), large_recipe(), RECIPE])
def test_all_sizes_can_be_trained(recipe: LanguageRecipe) -> None:
    place = Path("somewhere")
    base = recipe.base(place)
    assert recipe.memory_layer == recipe.layers // 2
    check_recipe(base, model_config(base, recipe.vocabulary))
    per_step = recipe.rows * recipe.window
    for name in VARIANTS:
        variant = recipe.variant(name, place, place)
        assert isinstance(variant, ContinueRecipe)
        assert variant.max_steps == recipe.steps
        assert variant.batch_size * (variant.window or recipe.window) == per_step


def test_variants_see_what_their_names_say() -> None:
    """Who is seen by the last window of the last document: its own windows first, then those of others."""
    from longfocus.training.contexts import parse_contexts
    from longfocus.training.schedule import parse_schedule

    recipe, place = LanguageRecipe(), Path("somewhere")
    generator = torch.Generator().manual_seed(0)
    seen = {}
    for name in ("fot", "fot_d1"):
        variant = recipe.variant(name, place, place)
        d = parse_schedule(variant.d).largest
        step = parse_contexts(variant.contexts).draw(variant.batch_size, d, generator)
        last, first = step.is_positive[-1], step.is_positive[0]
        assert int(first.sum()) == 0
        seen[name] = (int(last.sum()), int((step.plan[-1] >= 0).sum()))
    assert seen == {"fot": (15, 63), "fot_d1": (15, 15)}
    base = parse_contexts(recipe.base(place).contexts).draw(recipe.base_rows, 1, generator)
    assert not bool((base.plan >= 0).any())


@pytest.mark.parametrize(
    ("name", "like", "differing"),
    [
        ("gate", "fot_d1", {"merge"}),
        ("no_gradient", "fot_d1", {"detach_contexts"}),
        ("memorizing_joint", "memorizing", {"merge"}),
        ("w1", "fot_d1", {"contexts"}),
        ("w2", "fot_d1", {"contexts"}),
    ],
)
def test_an_ablation_differs_from_its_like_in_one_thing(
    name: Variant, like: Variant, differing: set[str]
) -> None:
    ablated, whole = (
        LanguageRecipe().variant(own, Path("data"), Path("base")).to_dict() for own in (name, like)
    )
    assert {entry for entry in whole if ablated[entry] != whole[entry]} == differing


@pytest.mark.parametrize(("name", "most"), [("w1", 1), ("w2", 2), ("fot_d1", 3)])
def test_windows_see_so_many_before_them_and_none_of_others(name: Variant, most: int) -> None:
    recipe = LanguageRecipe(windows=4, rows=8).variant(name, Path("data"), Path("base"))
    plan = parse_contexts(recipe.contexts).draw(8, 1, torch.Generator()).plan
    seen = [sorted(place for place in row if place >= 0) for row in plan.tolist()]
    for document in (0, 4):
        for place in range(4):
            expected = range(document + max(place - most, 0), document + place)
            assert seen[document + place] == list(expected)
