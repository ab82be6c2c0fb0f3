"""Muon and AdamW as one optimizer: every weight once, rates of their own, resumable, driven by one schedule."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from fitting import losses, run, same_weights, tiny_model

from longfocus.training import optimizers
from longfocus.training.optimizers import Joined, divided, muon_and_adamw
from longfocus.training.trainer import TrainingStep


def joined(model: torch.nn.Module, temperature_rate: float = 3.0) -> Joined:
    return Joined(
        muon_and_adamw(
            divided(model, (1,)),
            matrix_rate=1e-2,
            other_rate=2e-2,
            temperature_rate=temperature_rate,
            matrix_decay=0.0,
        )
    )


def test_every_weight_is_trained_once_and_the_temperature_is_that_of_memory_layers() -> None:
    model = tiny_model()
    weights = divided(model, (1,))
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [names[id(weight)] for part in weights for weight in part]
    assert sorted(found) == sorted(names.values())
    assert [names[id(weight)] for weight in weights.temperature] == [
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.self_attn.k_norm.weight",
    ]
    assert all(".layers." in names[id(weight)] for weight in weights.matrices)
    model.model.layers[0].requires_grad_(False)
    assert not any(".layers.0." in names[id(w)] for part in divided(model, (1,)) for w in part)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
    optimizer.step()


def test_rates_set_on_the_whole_reach_the_parts_also_after_loading() -> None:
    model = tiny_model()
    optimizer = joined(model)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 2e-2, 6e-2]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    step(model, optimizer)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_loaded_optimizer_steps_as_the_saved_one() -> None:
    one, other = tiny_model(), tiny_model()
    first = joined(one)
    for _ in range(2):
        step(one, first)
    other.load_state_dict(one.state_dict())
    second = joined(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(one, first)
    step(other, second)
    assert same_weights(one, other)


@pytest.mark.long
def test_a_resumed_training_with_muon_equals_an_undisturbed_one(tmp_path: Path) -> None:
    options = {"optimizer": "muon", "memory_layers": (1,), "temperature_rate": 4.0}
    options |= {"scheduler": "linear", "save_steps": 2}
    whole, _ = run(tmp_path / "whole", 6, **options)

    def stop(step: TrainingStep) -> None:
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    _, ended = run(tmp_path / "parts", 6, report=stop, **options)
    # a signal is heeded at the end of the next step
    assert (ended.ending, ended.steps) == ("interrupted", 4)
    resumed, _ = run(tmp_path / "parts", 6, **options)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_weights(resumed, whole)


def test_muon_and_its_temperature_rate_change_what_is_learnt(tmp_path: Path) -> None:
    muon = {"optimizer": "muon", "memory_layers": (1,)}
    models = [
        run(tmp_path / str(number), 2, **options)[0]
        for number, options in enumerate([{}, muon, muon | {"temperature_rate": 9.0}])
    ]
    norms = [model.model.layers[1].self_attn.q_norm.weight for model in models]
    moved = [(norm - 1).abs().mean().item() for norm in norms]
    assert moved[2] > 3 * moved[1] > 0
    matrices = [model.model.layers[0].mlp.up_proj.weight for model in models]
    assert not torch.equal(matrices[0], matrices[1])


@pytest.mark.parametrize(("is_fast", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_muon_computes_in_float32_where_the_processor_is_slow_with_bfloat16(
    is_fast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "multiplies", lambda dtype, device: is_fast)
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(12, 20, requires_grad=True)
    weight.grad = torch.randn(12, 20, generator=generator)
    optimizers.Muon([weight], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
    # Newton-Schulz as published with Muon (Jordan et al. 2024), in float64
    expected = weight.grad.double() / weight.grad.double().norm()
    for _ in range(5):
        square = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * square + 2.0315 * square @ square) @ expected
    difference = (weight.detach().double() + expected).abs().max().item()
    assert difference < tolerance
    assert is_fast == (difference > 1e-4)
