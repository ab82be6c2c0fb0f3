"""The trainer: what it minimises, that it goes on exactly where it stopped, and that it ends cleanly."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import WINDOW, crossbatch, losses, rows, run, same_weights, tiny_model
from torch.nn import functional

from long import mostly_long
from longfocus.core.additional import AdditionalContexts
from longfocus.errors import LongFocusError
from longfocus.training import checkpoints
from longfocus.training.crossbatch import Plain
from longfocus.training.real_memory import RealMemory
from longfocus.training.trainer import RowBatches, TrainingStep
from longfocus.training.transformer_xl import TransformerXL

PLAIN_DESCENT = {"learning_rate": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
SGD: dict[str, Any] = {"arguments": {"optim": "sgd"}, **PLAIN_DESCENT}

KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "crossbatch": lambda: {"method": crossbatch("1/2(0,0) 1/2(1,2)")},
    "accumulated": lambda: {"method": crossbatch(accumulation=2), "accumulation": 2},
    "switch at an accuracy": lambda: {"method": crossbatch(d="1 until 0.1% then 2,4")},
    "plain": lambda: {
        "method": Plain(),
        "rows": rows(packing=1, batch_size=3),
        "model": tiny_model(memory=False),
    },
    "transformer_xl": lambda: {
        "method": TransformerXL(WINDOW),
        "rows": rows(packing=1, batch_size=3),
        "model": tiny_model(memory=False),
    },
    "real memory": lambda: {"method": RealMemory(40), "rows": rows(packing=1, batch_size=3)},
    "gate": lambda: {
        "method": RealMemory(40),
        "rows": rows(packing=1, batch_size=3),
        "model": tiny_model(merge="gate"),
    },
}


@pytest.mark.parametrize("kind", mostly_long(KINDS, "crossbatch"))
def test_a_stopped_and_resumed_run_has_the_losses_and_weights_of_one_that_was_not(
    kind: str, tmp_path: Path
) -> None:
    def stop(step: TrainingStep) -> None:
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, ended = run(tmp_path / "whole", 7, **KINDS[kind]())
    assert ended.ending == "finished"
    _, ended = run(tmp_path / "parts", 7, report=stop, **KINDS[kind]())
    assert ended.ending == "interrupted"
    assert ended.signal == signal.SIGTERM
    # the signal came while step 4 was reported, and the next step was completed
    assert ended.steps == 5
    parts, ended = run(tmp_path / "parts", 7, **KINDS[kind]())
    assert ended.ending == "finished"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(parts, whole)


@pytest.mark.long
def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(step: TrainingStep) -> None:
        if step.step == 8:
            raise Killed

    whole, _ = run(tmp_path / "whole", 9)
    with pytest.raises(Killed):
        run(tmp_path / "parts", 9, report=die)
    # as if the kill had come while the checkpoint was written
    newest = tmp_path / "parts" / "checkpoints" / "checkpoint-6"
    (newest / "rows-0.pt").unlink()
    first = []
    parts, _ = run(tmp_path / "parts", 9, report=lambda step: first.append(step.step))
    assert first[0] == 4
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(parts, whole)


def test_a_checkpoint_of_other_processes_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 3)
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    state = checkpoints.load_rank(folder, 0)
    assert state.pop("ranks") == 1
    for rank in range(2):
        checkpoints.save_rank(folder, rank, 2, state)
    with pytest.raises(LongFocusError, match="written by 2 processes"):
        run(tmp_path, 5)


def first_batches(count: int, packing: int = 2) -> list[dict[str, torch.Tensor]]:
    found = iter(RowBatches(rows(packing)))
    return [next(found) for _ in range(count)]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def test_accumulation_is_one_batch_with_a_block_diagonal_plan(tmp_path: Path) -> None:
    """One loss over all targets of all micro-batches, and each sees its own rows only."""
    trained, _ = run(tmp_path, 1, method=crossbatch(d="2", accumulation=2), accumulation=2, **SGD)
    model, drawn = tiny_model(), crossbatch(d="2", accumulation=2)
    batches = first_batches(2)
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    plans = []
    for batch in batches:
        drawn.d = 2
        plans.append(drawn._contexts(batch, 0, 1).plan)
        drawn._batches += 1
    plan = torch.cat([plans[0], torch.where(plans[1] >= 0, plans[1] + len(plans[0]), -1)])
    valid = joined["documents"] >= 0
    output = model(
        joined["input_ids"], additional_contexts=AdditionalContexts(plan, valid), use_cache=False
    )
    count = (joined["labels"] != -100).sum()
    loss = token_losses(output.logits, joined["labels"]) / count
    loss.backward()
    assert losses(tmp_path)[0] == pytest.approx(loss.item(), abs=1e-5)
    for one, other in zip(trained.parameters(), model.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one, other - other.grad, atol=1e-5, rtol=1e-5)


def test_the_plain_method_minimises_the_mean_over_all_targets(tmp_path: Path) -> None:
    run(tmp_path, 1, method=Plain(), model=tiny_model(memory=False), **SGD)
    (batch,) = first_batches(1)
    logits = tiny_model(memory=False)(batch["input_ids"]).logits
    count = (batch["labels"] != -100).sum()
    expected = token_losses(logits, batch["labels"]) / count
    assert losses(tmp_path)[0] == pytest.approx(expected.item(), abs=1e-6)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", 3)
    checkpointed, _ = run(tmp_path / "checkpointed", 3, gradient_checkpointing=True)
    assert losses(tmp_path / "plain") == losses(tmp_path / "checkpointed")
    assert same_weights(plain, checkpointed)


def test_metrics_tell_the_d_and_the_positive_mass_of_every_memory_layer(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    run(
        tmp_path,
        4,
        method=crossbatch(d="4"),
        finish=lambda trainer: logged.extend(trainer.state.log_history),
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["d"] for line in lines] == [4] * 4
    for line in lines:
        # keys of a model without training do not tell documents apart
        assert line["positive_mass"]["1"] == pytest.approx(1 / 4, abs=0.05)
        assert line["tokens_per_second"] > 0
    # what trackers are told
    told = [entry["r_d/1"] for entry in logged if "loss" in entry]
    assert told == [line["positive_mass"]["1"] for line in lines]


def test_a_loss_that_is_no_number_stops_and_names_batch_and_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()

    def spoil(step: TrainingStep) -> None:
        if step.step == 4:
            model.lm_head.weight.data.fill_(float("nan"))

    with pytest.raises(LongFocusError, match=r"nan in step 5.*documents.*are number \[") as error:
        run(tmp_path, 7, model=model, report=spoil)
    assert "checkpoint-3" in str(error.value)
    _, ended = run(tmp_path, 7)
    assert ended.steps == 7


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    model = tiny_model()
    before = {}

    def spoil(step: TrainingStep) -> None:
        if step.step == 4:
            before.update({name: weight.clone() for name, weight in model.state_dict().items()})
            # the loss stays a number
            model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))

    with pytest.raises(LongFocusError, match=r"gradient is not finite in step 5.*checkpoint-3"):
        run(tmp_path, 7, model=model, report=spoil)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("where", mostly_long(["rows", "transformers"], "transformers"))
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tmp_path / "whole", 7)
    real: Any = checkpoints.save_rank if where == "rows" else torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        if any("checkpoint-6" in str(part) for part in args):
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        target, name = (checkpoints, "save_rank") if where == "rows" else (torch, "save")
        patch.setattr(target, name, full)
        with pytest.raises(LongFocusError, match=r"No space left.*checkpoint-3"):
            run(tmp_path / "parts", 7)
    parts, _ = run(tmp_path / "parts", 7)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(parts, whole)


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, 7, save_steps=2)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["checkpoint-6", "checkpoint-7"]


def test_the_model_s_own_choice_of_a_cache_survives_training(tmp_path: Path) -> None:
    model, _ = run(tmp_path, 1)
    assert model.config.use_cache


def test_a_finished_training_can_be_taken_further(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 4)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-3")
    parts, _ = run(tmp_path / "parts", 6)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(parts, whole)


@pytest.mark.parametrize("memory", [True, False], ids=["crossbatch", "plain"])
@pytest.mark.parametrize("is_masked", [True, False])
def test_only_masked_documents_are_unseen_by_the_next_one_in_a_row(
    is_masked: bool, memory: bool
) -> None:
    """Without the mask a row is read as in ordinary training; with it a document's logits are those it has alone."""
    model = tiny_model(memory=memory)
    method = crossbatch("1(0,0)", mask_documents=is_masked)
    ids = torch.randint(1, 50, (2, WINDOW))
    documents = torch.zeros(2, WINDOW, dtype=torch.long)
    documents[:, 6:] = 1
    batch: Any = {"input_ids": ids, "labels": ids, "documents": documents}
    chosen = method if memory else Plain(mask_documents=is_masked)
    found = chosen.forward(model, batch, {}).logits[:, 6:]
    alone = model(ids[:, 6:], use_cache=False).logits
    assert torch.allclose(found, alone, atol=1e-5) == is_masked


def test_no_row_ever_sees_a_later_token_of_its_own_document() -> None:
    """What leaks and what does not: contexts of the own document are earlier windows."""
    contexts = crossbatch("1/4(0,0) 1/4(1,2) 1/4(2,5) 1/4(3,4)").contexts
    drawn = contexts.draw(16, 0, torch.Generator())
    for row in range(16):
        own = drawn.plan[row][drawn.is_positive[row]]
        assert (own < row).all()
        assert (own // 4 == row // 4).all()


def test_after_the_last_step_nothing_is_trained_again(tmp_path: Path) -> None:
    """As when a kill comes between the last checkpoint and the saved model."""
    trained, _ = run(tmp_path, 4)
    before = losses(tmp_path)
    again, ended = run(tmp_path, 4)
    assert ended.ending == "finished"
    assert losses(tmp_path) == before
    assert same_weights(again, trained)
