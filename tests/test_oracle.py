"""The oracle itself: one window is the plain model, several windows are the published code."""

import pytest
import torch

from families import FAMILIES, VOCABULARY, Family, tiny_model
from oracle import Memory, oracle_logits


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)
def test_oracle_with_one_window_is_the_plain_model(entry: Family) -> None:
    model = tiny_model(entry)
    input_ids = torch.randint(3, VOCABULARY, (2, 19), generator=torch.Generator().manual_seed(5))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :4] = 0
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions
        ).logits
    oracle = oracle_logits(
        model, input_ids, [0], Memory(entry.memory_layers), attention_mask=attention_mask
    )
    real = attention_mask.bool()
    torch.testing.assert_close(oracle[real], plain[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)
def test_every_choice_of_the_oracle_changes_the_logits(entry: Family) -> None:
    model = tiny_model(entry)
    input_ids = torch.randint(3, VOCABULARY, (2, 50), generator=torch.Generator().manual_seed(6))
    layers = entry.memory_layers
    choices = {
        "dense": Memory(layers),
        "no memory": Memory(()),
        "top 3": Memory(layers, top_k=3),
        "no positions": Memory(layers, positions="none"),
        "true positions": Memory(layers, positions="true"),
        "bfloat16": Memory(layers, dtype=torch.bfloat16),
        "gate": Memory(layers, gates={layer: torch.zeros(6) for layer in layers}),
    }
    logits = {
        name: oracle_logits(model, input_ids, [0, 17, 34], memory)
        for name, memory in choices.items()
    }
    for name, other in logits.items():
        if name != "dense":
            difference = (other - logits["dense"])[:, 17:].abs().max().item()
            assert difference > (0.005 if name == "bfloat16" else 0.1), name
