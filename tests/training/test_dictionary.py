"""`longfocus train dictionary`: a tiny training runs, continues, and is saved with its recipe."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import longfocus
from longfocus.core.plans import paper_plan
from longfocus.errors import LongFocusError
from longfocus.evaluation.dictionary import DictionaryTask, evaluate_dictionary
from longfocus.training.dictionary import train_dictionary
from longfocus.training.dictionary_model import make_model, places_of
from longfocus.training.dictionary_recipe import DictionaryRecipe
from longfocus.training.loop import Progress

TINY = DictionaryRecipe(
    hidden_size=16,
    intermediate_size=16,
    head_dim=8,
    curriculum=(2, 25),
    curriculum_rows=4,
    curriculum_documents=3,
    curriculum_steps=2,
    documents=3,
    asking=2,
    steps=3,
    contrast_steps=2,
    alphabets=(60, 6),
)


def losses(directory: Path) -> list[tuple[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dictionary")
    assert train_dictionary(TINY, directory).ending == "finished"
    return directory


def test_curriculum_comes_first_and_crossbatch_last(trained: Path) -> None:
    stages = [stage for stage, _ in losses(trained)]
    easy = ["2 records, d=1"] * 2 + ["25 records, d=1"] * 2
    assert stages == easy + ["25 records, d=3"] * 3 + ["25 records, d=3, contrast"] * 2


def test_the_last_stage_holds_the_temperature_that_the_recipe_says(trained: Path) -> None:
    state = torch.load(trained / "training" / "training_state.pt", weights_only=True)["model"]
    q_norm, k_norm = (state[f"model.layers.2.self_attn.{name}_norm.weight"] for name in "qk")
    assert (q_norm * k_norm).mean().item() == pytest.approx(TINY.contrast_temperature)


def test_recipe_beside_the_result_is_enough_to_train_it_again(
    trained: Path, tmp_path: Path
) -> None:
    recipe = DictionaryRecipe.from_dict(json.loads((trained / "recipe.json").read_text()))
    assert recipe == TINY
    train_dictionary(recipe, tmp_path)
    assert losses(tmp_path) == losses(trained)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_stopped_and_resumed_training_gives_the_same_model(trained: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(progress: Progress) -> None:
        if progress.step == 6:
            raise Killed

    with pytest.raises(Killed):
        train_dictionary(TINY, tmp_path, report=die)
    train_dictionary(TINY, tmp_path)
    assert losses(tmp_path) == losses(trained)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_max_steps_stops_and_more_of_them_go_on(trained: Path, tmp_path: Path) -> None:
    assert train_dictionary(TINY, tmp_path, max_steps=5).ending == "max_steps"
    assert losses(tmp_path) == losses(trained)[:5]
    assert not (tmp_path / "model.safetensors").exists()
    assert train_dictionary(TINY, tmp_path).ending == "finished"
    assert losses(tmp_path) == losses(trained)


def test_stopped_within_the_last_stage_it_is_not_begun_again(trained: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_dictionary(TINY, tmp_path, report=stop).ending == "interrupted"
    assert train_dictionary(TINY, tmp_path).ending == "finished"
    assert losses(tmp_path) == losses(trained)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_saved_model_has_its_memory_attached_and_sharper_scores(trained: Path) -> None:
    model = longfocus.from_pretrained(trained)
    state = torch.load(trained / "training" / "training_state.pt", weights_only=True)
    name = "model.layers.2.self_attn.q_norm.weight"
    sharpened = (state["model"][name] * TINY.sharpen).to(torch.bfloat16)
    assert torch.equal(model.state_dict()[name].to(torch.bfloat16), sharpened)


def test_other_seed_in_a_used_directory_is_refused(trained: Path) -> None:
    with pytest.raises(LongFocusError, match="seed: there 0, asked 1"):
        train_dictionary(replace(TINY, seed=1), trained)


def test_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LongFocusError, match=r"not empty and holds no recipe\.json"):
        train_dictionary(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LongFocusError, match="cannot be made"):
        train_dictionary(TINY, tmp_path / "file")


def test_recipe_of_another_kind_is_refused() -> None:
    with pytest.raises(LongFocusError, match="kind 'code'"):
        DictionaryRecipe.from_dict({"kind": "code"})


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = make_model(TINY), make_model(TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )


def test_evaluation_asks_enough_and_reports_every_length(trained: Path) -> None:
    model = longfocus.from_pretrained(trained)
    settings = DictionaryTask(lengths=(1300, 500), questions=75, whole_answers=3)
    short, long = evaluate_dictionary(model, settings)
    assert (short.tokens, long.tokens) == (512, 1536)
    assert short.answer_tokens >= 75 * 4
    assert long.answer_tokens == 75 * 4
    assert long.whole_answers == 3
    assert 0 <= long.accuracy < 0.2
    assert long.ambiguous == 0
    assert long.memory_bytes == 1536 * 2 * 8 * 2


def test_evaluation_without_lengths_is_refused(trained: Path) -> None:
    model = longfocus.from_pretrained(trained)
    with pytest.raises(LongFocusError, match="at least one number of tokens"):
        next(evaluate_dictionary(model, DictionaryTask(lengths=())))


def test_shipped_model_answers_every_question_about_4096_tokens() -> None:
    model = longfocus.from_pretrained("dictionary")
    settings = DictionaryTask(lengths=(4096,), questions=100, whole_answers=10)
    (result,) = evaluate_dictionary(model, settings)
    assert result.accuracy == result.whole_answer_accuracy == 1
    assert result.accuracy_without_memory < 0.1


def test_shipped_recipe_is_the_command_s_default() -> None:
    folder = Path(longfocus.__file__).parent / "models" / "dictionary"
    recipe = DictionaryRecipe.from_dict(json.loads((folder / "recipe.json").read_text()))
    assert recipe == DictionaryRecipe()


def test_a_model_can_start_from_another_with_scaled_positions(tmp_path: Path) -> None:
    start = replace(TINY, curriculum=(2,), curriculum_only=True, max_positions=128)
    train_dictionary(replace(start, positions="window_start"), tmp_path / "start")
    state = torch.load(tmp_path / "start" / "training" / "training_state.pt", weights_only=True)
    saved = longfocus.from_pretrained(tmp_path / "start").state_dict()
    for name, weight in state["model"].items():
        # nothing is sharpened, for the training is not over
        assert torch.equal(saved[name].to(torch.bfloat16), weight.to(torch.bfloat16))
    recipe = replace(
        TINY,
        model=str(tmp_path / "start"),
        curriculum=(25,),
        positions="window_start",
        rope_scaling="yarn:2",
    )
    model = make_model(recipe)
    for name, weight in saved.items():
        assert torch.equal(model.state_dict()[name], weight.float())
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert (model.config.max_position_embeddings, model.focus.config.window) == (256, 256)
    assert train_dictionary(recipe, tmp_path / "scaled").ending == "finished"


def test_positions_of_random_weights_and_a_model_to_start_from_are_refused_together() -> None:
    with pytest.raises(LongFocusError, match="Got 128"):
        replace(TINY, model="somewhere", max_positions=128)
    with pytest.raises(LongFocusError, match=r"rope_theta .* Got 1000000"):
        replace(TINY, model="somewhere", rope_theta=1e6)


def test_true_positions_place_what_is_seen_before_what_sees_it(tmp_path: Path) -> None:
    own, shared = paper_plan(3, d=1), paper_plan(3, d=3)[:5]
    generator = torch.Generator().manual_seed(0)
    assert places_of(shared, 2, 3, generator).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [6, 7]]
    found = [places_of(own, 2, 3, generator) for _ in range(40)]
    assert all(places[3:].tolist() == [[6, 7]] * 3 for places in found)
    before = torch.cat([places[:3] for places in found])
    # each of them at any of the three places before
    assert before.unique(dim=0).tolist() == [[0, 1], [2, 3], [4, 5]]
    recipe = replace(TINY, positions="true", rope_scaling="linear:4")
    assert train_dictionary(recipe, tmp_path).ending == "finished"
    assert longfocus.from_pretrained(tmp_path).focus.config.positions == "true"
