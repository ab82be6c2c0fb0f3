"""What the tests of generation share: settings without surprises, and the oracle's logits for a generated text."""

from typing import Any

import torch
from attached import text
from torch import Tensor
from transformers import PreTrainedModel

from families import family, tiny_model
from oracle import Memory, oracle_logits

ENTRY = family("llama_gqa")
# Logits have a standard deviation of about 3.
TOLERANCE = 5e-5

SETTINGS: dict[str, Any] = {
    "eos_token_id": None,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
GREEDY: dict[str, Any] = {**SETTINGS, "do_sample": False}


def prompt(length: int, padding: tuple[int, ...] = (0,)) -> dict[str, Tensor]:
    """A random prompt as `generate` takes it."""
    input_ids, mask = text(length, padding)
    return {"input_ids": input_ids, "attention_mask": mask}


def oracle_steps(
    sequences: Tensor, new_tokens: int, starts: list[int], mask: Tensor | None = None
) -> Tensor:
    """Logits [rows, new_tokens, vocabulary] from which the last tokens of `sequences` were chosen."""
    read = sequences[:, :-1]
    if mask is not None:
        mask = torch.nn.functional.pad(mask, (0, read.shape[1] - mask.shape[1]), value=1)
    plain = tiny_model(ENTRY)
    logits = oracle_logits(plain, read, starts, Memory(ENTRY.memory_layers), attention_mask=mask)
    return logits[:, -new_tokens:]


def steps(output: Any) -> Tensor:
    """The logits of `generate`, [rows, new_tokens, vocabulary]."""
    return torch.stack(output.logits, dim=1)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def perturbed(model: PreTrainedModel, noise: float) -> PreTrainedModel:
    """The same model with weights that differ by a share of their own spread: it often guesses right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return model
