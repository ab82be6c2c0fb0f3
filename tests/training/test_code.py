"""The code model's training: batches that ask what they define, a control that differs in d only, resumable."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import longfocus
from longfocus.errors import LongFocusError
from longfocus.training import code, code_data
from longfocus.training.code_batches import Batches
from longfocus.training.code_recipe import COMPETE, FIND, REFINE, CodeRecipe
from longfocus.training.corpus import find_documents, tokenise_corpus
from longfocus.training.passkey_task import DIGITS
from longfocus.training.stdlib_leak import SourceIndex
from longfocus.training.tokenizer import train_tokenizer

WORDS = (
    "parser",
    "window",
    "config",
    "string",
    "buffer",
    "reader",
    "writer",
    "socket",
    "thread",
    "future",
)
RECIPE = CodeRecipe(
    hidden_size=16,
    intermediate_size=16,
    heads=1,
    head_size=16,
    vocabulary=400,
    window=128,
    documents=4,
    cpu_minutes=60,
    find=tuple(replace(phase, steps=2, until_accuracy=1.0) for phase in FIND[:2]),
    compete=replace(COMPETE, steps=3, windows=4, asked_windows=2, contexts=(2, 4), lines=(2, 3)),
    refine=replace(REFINE, steps=2, windows=4, asked_windows=2, contexts=(2, 4), lines=(2, 3)),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small wait for each other with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site-packages")
    rng = np.random.default_rng(0)
    for package in ("alpha", "beta"):
        lines = [
            f"{rng.choice(WORDS)} = {rng.choice(WORDS)}({rng.integers(100)})  # {package}"
            for _ in range(400)
        ]
        (root / package).mkdir()
        (root / package / "__init__.py").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def batches(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Batches:
    documents = find_documents(packages, index=SourceIndex.of_texts([]))
    tokenizer = train_tokenizer((document.text() for document in documents), 400)
    corpus = tokenise_corpus(documents, tokenizer, tmp_path_factory.mktemp("data"))
    return Batches(RECIPE, corpus, tokenizer, WORDS)


@pytest.fixture
def small_data(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = find_documents(packages, index=SourceIndex.of_texts([]))
    monkeypatch.setattr(code_data, "find_documents", lambda **kwargs: documents)
    monkeypatch.setattr(code_data, "SAMPLE_EVERY", 1)


@pytest.mark.parametrize("phase", [*RECIPE.find, RECIPE.compete, RECIPE.refine])
@pytest.mark.parametrize("dense_share", [0.0, 1.0])
def test_every_answer_stands_in_the_positive_window(
    batches: Batches, phase, dense_share: float
) -> None:
    phase = replace(phase, dense_share=dense_share)
    batch, is_dense = batches.draw(phase, torch.Generator().manual_seed(1))
    assert is_dense is (dense_share == 1.0)
    asked_rows = batch.digits.any(1).nonzero().flatten().tolist()
    assert asked_rows
    for row in asked_rows:
        positive = "".join(map(str, batch.ids[batch.plan[row, 0]].tolist()))
        for answer in batch.ids[row][batch.digits[row]].view(-1, DIGITS).tolist():
            assert "".join(map(str, answer)) in positive
    previous = len(batch.ids) - (batch.plan >= 0).any(1).sum()
    assert not batch.digits[:previous].any()
    assert not (batch.code & batch.digits).any()


def test_the_control_sees_the_same_data_with_one_context(batches: Batches) -> None:
    control = Batches(replace(RECIPE, control=True), batches.corpus, batches.tokenizer, WORDS)
    for seed in range(4):
        one, _ = batches.draw(RECIPE.compete, torch.Generator().manual_seed(seed))
        two, _ = control.draw(RECIPE.compete, torch.Generator().manual_seed(seed))
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.digits, two.digits)
        assert two.plan.shape[1] == 1
        assert torch.equal(one.plan[:, :1], two.plan)
        assert one.plan.shape[1] in (2, 4)


def test_recipe_survives_json() -> None:
    assert CodeRecipe.from_dict(json.loads(json.dumps(RECIPE.to_dict()))) == RECIPE


def test_temperature_matrices_and_the_rest_have_their_optimizers() -> None:
    model = code.build_model(RECIPE)
    muon, adam = code.optimizers(model, RECIPE, RECIPE.compete)
    assert all(weight.ndim == 2 for group in muon.param_groups for weight in group["params"])
    _rest, temperature = adam.param_groups
    assert len(temperature["params"]) == 2
    assert temperature["lr"] == RECIPE.other_rate * RECIPE.compete.temperature_rate
    counted = sum(
        len(group["params"]) for optimizer in (muon, adam) for group in optimizer.param_groups
    )
    assert counted == len(list(model.parameters()))


@pytest.mark.long
@pytest.mark.usefixtures("small_data")
def test_resumed_training_equals_uninterrupted_and_saves_a_pair(tmp_path: Path) -> None:
    def interrupt_at(step: int):
        import os
        import signal

        seen = []

        def report(progress) -> None:
            seen.append(progress)
            if len(seen) == step:
                os.kill(os.getpid(), signal.SIGINT)

        return report

    assert code.train_code(RECIPE, tmp_path / "whole").ending == "finished"
    for step in (2, 3, 4):
        outcome = code.train_code(RECIPE, tmp_path / "parts", report=interrupt_at(step))
        assert outcome.ending == "interrupted"
    assert code.train_code(RECIPE, tmp_path / "parts").ending == "finished"
    for folder in ("", "control"):
        whole = (tmp_path / "whole" / folder / "model.safetensors").read_bytes()
        assert whole == (tmp_path / "parts" / folder / "model.safetensors").read_bytes()
    loaded = longfocus.from_pretrained(tmp_path / "whole")
    assert loaded.focus.config.memory_layers == (RECIPE.memory_layer,)
    tokenizer = longfocus.tokenizer(tmp_path / "whole" / "control")
    session = longfocus.Session(loaded, tokenizer)
    session.read("\nparser = window(1)\n" * 40, progress=False)
    assert (
        len(session.ask("\n# The pass key of 'parser_window' is ", max_new_tokens=5).token_ids) == 5
    )


@pytest.mark.usefixtures("small_data")
def test_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(replace(RECIPE, seed=1).to_dict()))
    (tmp_path / "training").mkdir()
    with pytest.raises(LongFocusError, match="seed: there 1, asked 0"):
        code.train_code(RECIPE, tmp_path)
