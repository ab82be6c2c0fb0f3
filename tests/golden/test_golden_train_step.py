"""One training step of the published JAX code: logits, loss, accuracy and gradients of all weights."""

import pytest
import torch
from golden_cases import Case, cases, name_of, relative_norm_error
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import longfocus

CASES = cases("train_step")


def model_with_memory_layers(case: Case) -> PreTrainedModel:
    told = case.description["config"]
    sizes = {
        name: value for name, value in told.items() if name not in ("mem_layers", "rope_theta")
    }
    rope = {"rope_type": "default", "rope_theta": told["rope_theta"]}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, rope_parameters=rope, attn_implementation="eager")
    )
    model.load_state_dict(weights_of(case))
    focus = longfocus.FocusConfig(
        memory_layers=told["mem_layers"], window=case.description["seq_len"]
    )
    longfocus.attach(model, focus)
    return model.train()


def weights_of(case: Case) -> dict[str, Tensor]:
    others = ("grad.", "input_tokens", "target_tokens", "loss_masks", "logits", "loss", "accuracy")
    return {name: value for name, value in case.tensors.items() if not name.startswith(others)}


def plan_of(case: Case) -> Tensor | None:
    """Range 0 is ordinary attention: no plan."""
    told = case.description["crossbatch"]
    if not told["cross_batch_range"]:
        return None
    return longfocus.published_plan(
        case.description["batch_size"],
        context_range=told["cross_batch_range"],
        stepping=told["cross_batch_stepping"],
        packing=told["dataset_packing"],
    )


def mean_over_rows(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over rows of the mean over the unmasked tokens of a row."""
    return ((tokens * mask).sum(-1) / mask.sum(-1).clamp(min=1e-10)).mean()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_training_step_reproduces_golden_loss_and_gradients(case: Case) -> None:
    model, tensors, tolerance = model_with_memory_layers(case), case.tensors, case.tolerance
    plan = {} if (plan := plan_of(case)) is None else {"additional_contexts": plan}
    logits = model(input_ids=tensors["input_tokens"].long(), use_cache=False, **plan).logits
    torch.testing.assert_close(logits, tensors["logits"], **tolerance["logits"])

    targets, mask = tensors["target_tokens"].long(), tensors["loss_masks"]
    token_losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    loss = mean_over_rows(token_losses, mask)
    torch.testing.assert_close(loss, tensors["loss"].view(()), **tolerance["loss"])
    accuracy = mean_over_rows((logits.argmax(-1) == targets).float(), mask)
    torch.testing.assert_close(accuracy, tensors["accuracy"].view(()))

    loss.backward()
    for name, parameter in model.named_parameters():
        error = relative_norm_error(parameter.grad, tensors[f"grad.{name}"])
        assert error < tolerance["grads"]["rel_norm"], name
