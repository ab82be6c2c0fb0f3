"""What the tests of training share: batches of windows, recomputed layers, comparing gradients."""

import torch
from attached import WINDOW
from torch import Tensor
from transformers import PreTrainedModel

from families import VOCABULARY

ROWS = 6


def training_batch(padding: tuple[int, ...] = (0,) * ROWS) -> dict[str, Tensor]:
    """Windows whose last tokens are padding."""
    input_ids = torch.randint(3, VOCABULARY, (len(padding), WINDOW))
    mask = (torch.arange(WINDOW) < WINDOW - torch.tensor(padding)[:, None]).long()
    labels = input_ids.masked_fill(mask == 0, -100)
    return {"input_ids": input_ids * mask, "attention_mask": mask, "labels": labels}


def recompute(model: PreTrainedModel, *, use_reentrant: bool) -> PreTrainedModel:
    """Turn gradient checkpointing on."""
    # transformers renamed it; the old name warns where the new one exists
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": use_reentrant})
    return model


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Of the same weights, and equal in relative norm."""
    found, wanted = gradients(actual), gradients(expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < 1e-5, name
