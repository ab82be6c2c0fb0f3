"""A training that is stopped and resumed is the training that was never stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from longfocus.errors import LongFocusError
from longfocus.training.loop import Progress, train
from longfocus.training.stages import LoopSettings, Stage, StepResult

SETTINGS = LoopSettings(seed=3)
SAVING_ALWAYS = LoopSettings(seed=3, save_seconds=0.0)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))


def make_stages(model: nn.Module, **changes: object) -> list[Stage]:
    def step(generator: torch.Generator) -> StepResult:
        inputs = torch.randn(7, 5, generator=generator)
        target = inputs[:, :3].argmax(1)
        logits = model(inputs)
        accuracy = (logits.argmax(1) == target).float().mean().item()
        return StepResult(
            nn.functional.cross_entropy(logits.float(), target), accuracy, inputs.numel()
        )

    def adamw() -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(model.parameters(), lr=1e-2)]

    def muon() -> list[torch.optim.Optimizer]:
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        rest = [weight for weight in model.parameters() if weight.dim() != 2]
        return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(rest, lr=1e-2)]

    def fall(step: int, progress: float) -> float:
        return 1 - progress

    last = {
        "name": "third",
        "step": step,
        "optimizers": muon,
        "steps": 6,
        "schedule": fall,
        **changes,
    }
    return [
        Stage(name="first", step=step, optimizers=adamw, steps=5),
        Stage(name="second", step=step, optimizers=None, steps=4),
        Stage(**last),
    ]


def losses(directory: Path) -> list[tuple[int, str, float, float, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line["stage"], line["loss"], line["accuracy"], line["rate"])
        for line in lines
    ]


def stop_after(step: int, number: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    return report


@pytest.mark.parametrize("stops", [(1,), (3, 4, 7), (5, 9, 14)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumed_training_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, stops: tuple[int, ...], number: int
) -> None:
    whole = make_model()
    assert train(whole, make_stages(whole), tmp_path / "whole", SETTINGS).ending == "finished"
    for stop in stops:
        model = make_model()
        part = train(
            model, make_stages(model), tmp_path / "parts", SETTINGS, report=stop_after(stop, number)
        )
        assert part.ending == "interrupted"
    model = make_model()
    outcome = train(model, make_stages(model), tmp_path / "parts", SETTINGS)
    assert outcome.ending == "finished"
    assert [stage["name"] for stage in outcome.stages] == ["first", "second", "third"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )


def test_killed_training_repeats_the_steps_after_its_last_checkpoint(tmp_path: Path) -> None:
    whole = make_model()
    train(whole, make_stages(whole), tmp_path / "whole", SETTINGS)

    class Killed(Exception):
        pass

    def die(progress: Progress) -> None:
        if progress.step == 8:
            raise Killed

    model = make_model()
    with pytest.raises(Killed):
        train(model, make_stages(model), tmp_path / "parts", SAVING_ALWAYS, report=die)
    assert len(losses(tmp_path / "parts")) == 8
    model = make_model()
    train(model, make_stages(model), tmp_path / "parts", SETTINGS)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_finished_training_is_left_as_it_is(tmp_path: Path) -> None:
    model = make_model()
    train(model, make_stages(model), tmp_path, SETTINGS)
    before = losses(tmp_path)
    again = make_model()
    assert train(again, make_stages(again), tmp_path, SETTINGS).last is None
    assert losses(tmp_path) == before
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_stage_ends_when_it_is_accurate_enough(tmp_path: Path) -> None:
    model = make_model()
    outcome = train(model, make_stages(model, until_accuracy=0.0), tmp_path, SETTINGS)
    assert [stage["steps"] for stage in outcome.stages] == [5, 4, 1]


def test_budget_ends_every_stage_that_it_does_not_cover(tmp_path: Path) -> None:
    model = make_model()
    settings = LoopSettings(cpu_minutes=1e-9)
    outcome = train(model, make_stages(model, steps=10**6), tmp_path, settings)
    assert [stage["steps"] for stage in outcome.stages] == [1, 1, 1]


def test_loss_that_is_not_finite_is_an_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = make_model()

    def broken(generator: torch.Generator) -> StepResult:
        return StepResult(model(torch.zeros(1, 5)).sum() * float("nan"), 0.0, 1)

    with pytest.raises(LongFocusError, match="the loss is nan at step 10"):
        train(model, make_stages(model, step=broken), tmp_path, SAVING_ALWAYS)
    assert (tmp_path / "training_state.pt").exists()


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    model = make_model()
    train(model, make_stages(model), tmp_path, SETTINGS)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
