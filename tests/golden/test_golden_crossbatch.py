"""One crossbatch attention call of the published JAX code: outputs, gradients, and who sees whom."""

import pytest
import torch
from golden_cases import Case, cases, name_of
from torch import Tensor

import longfocus
from longfocus.core import crossbatch_attention

CASES = cases("crossbatch")


def plan_of(case: Case) -> Tensor:
    told = case.description
    return longfocus.published_plan(
        told["batch_size"],
        context_range=told["cross_batch_range"],
        stepping=told["cross_batch_stepping"],
        packing=told["dataset_packing"],
    )


def rotated(states: Tensor, kind: str, theta: float) -> Tensor:
    """Rotary at positions 0, 1, ... of [batch, heads, length, dim], written out pair by pair."""
    if kind == "none":
        return states
    length, dim = states.shape[-2:]
    frequencies = theta ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies  # (length, pairs)
    half_split = kind == "half_split"
    first, second = (
        states.chunk(2, dim=-1) if half_split else (states[..., 0::2], states[..., 1::2])
    )
    turned = (
        first * angles.cos() - second * angles.sin(),
        first * angles.sin() + second * angles.cos(),
    )
    return torch.cat(turned, dim=-1) if half_split else torch.stack(turned, dim=-1).flatten(-2)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_published_plan_lists_the_rows_that_the_published_code_sees(case: Case) -> None:
    seen = torch.eye(case.description["batch_size"], dtype=torch.int64)
    for row, contexts in enumerate(plan_of(case)):
        seen[row, contexts[contexts >= 0]] += 1
    assert seen.tolist() == case.description["visibility"]
    assert seen.sum(-1).tolist() == case.description["visible_context_counts"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_crossbatch_attention_reproduces_golden_output_and_gradients(case: Case) -> None:
    told, tensors = case.description, case.tensors
    given = {name: tensors[name].clone().requires_grad_() for name in ("q", "k", "v")}
    query, key, value = (states.transpose(1, 2) for states in given.values())
    output = crossbatch_attention(
        rotated(query, told["rope"], told["rope_theta"]),
        rotated(key, told["rope"], told["rope_theta"]),
        value,
        plan_of(case),
        first_key=key,
        bias=tensors["bias"],
    ).transpose(1, 2)
    torch.testing.assert_close(output, tensors["output"], **case.tolerance["output"])
    (output * tensors["loss_weight"]).sum().backward()
    for name, states in given.items():
        torch.testing.assert_close(
            states.grad,
            tensors[f"grad_{name}"],
            **case.tolerance["grads"],
            msg=f"gradient of {name}",
        )
