"""What the tests of attached models share: texts, attaching, and comparing with the oracle."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import VOCABULARY, Family, tiny_model
from oracle import Memory, oracle_logits, window_starts

WINDOW, KEPT = 13, 5
VERIFIED: set[tuple[Any, ...]] = set()
"""What has been attached before need not prove itself again."""
# Rows are padded on the left by nothing, by part of a window, and by more than a window.
PADDING = (0, 5, 16)


def text(length: int, padding: tuple[int, ...] = (0, 0)) -> tuple[Tensor, Tensor]:
    """Random token ids and their attention mask, one row per entry of `padding`."""
    generator = torch.Generator().manual_seed(length)
    input_ids = torch.randint(3, VOCABULARY, (len(padding), length), generator=generator)
    mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
    return input_ids * mask, mask


def attached(
    entry: Family, attention: str | None = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """The family's tiny model with memory in its memory layers."""
    return with_memory(tiny_model(entry, attention, dtype), entry.memory_layers, **settings)


def with_memory(
    model: PreTrainedModel, layers: tuple[int, ...], **settings: Any
) -> PreTrainedModel:
    settings = {"window": WINDOW, "last_context_length": KEPT, **settings}
    config = longfocus.FocusConfig(memory_layers=layers, **settings)
    key = (model.config.to_json_string(), model.config._attn_implementation, model.dtype, config)
    longfocus.attach(model, config, verify=key not in VERIFIED)
    VERIFIED.add(key)
    return model


def starts_of(length: int, new_tokens: int = 0) -> list[int]:
    """Windows of `split="when_needed"`: a prompt that fits is not cut."""
    return window_starts(length, KEPT if length > WINDOW else length, WINDOW, new_tokens)


def assert_equals_oracle(
    model: PreTrainedModel,
    plain: PreTrainedModel,
    memory: Memory,
    *,
    length: int = 47,
    padding: tuple[int, ...] = (0, 0),
    tolerance: float,
) -> None:
    """One long forward of the attached model has the oracle's logits at every real token."""
    input_ids, mask = text(length, padding)
    expected = oracle_logits(plain, input_ids, starts_of(length), memory, attention_mask=mask)
    given = {"attention_mask": mask} if any(padding) else {}
    with torch.no_grad():
        logits = model(input_ids=input_ids, **given).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], atol=tolerance, rtol=0)


def assert_generates_as_oracle(
    model: PreTrainedModel,
    plain: PreTrainedModel,
    memory: Memory,
    *,
    prompt: int = 6,
    padding: tuple[int, ...] = (0, 3),
    new_tokens: int = 23,
    tolerance: float,
) -> None:
    """Greedy decoding over two evictions has, step by step, the oracle's logits for the same text."""
    input_ids, mask = text(prompt, padding)
    settings = {
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "max_new_tokens": new_tokens,
    }
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    starts = starts_of(prompt, new_tokens - 1)
    assert len(starts) >= 3
    read = output.sequences[:, :-1]
    full_mask = torch.cat([mask, torch.ones(len(mask), new_tokens - 1, dtype=torch.int64)], dim=1)
    expected = oracle_logits(plain, read, starts, memory, attention_mask=full_mask)[:, prompt - 1 :]
    logits = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(logits, expected.to(logits.dtype), atol=tolerance, rtol=0)
    assert logits.argmax(-1).equal(output.sequences[:, prompt:])
