"""Training and inference are the same computation: another row as context is an earlier window as memory."""

import pytest
import torch
from attached import WINDOW, attached, text
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, Family, family, tiny_model
from oracle import Memory, oracle_logits

# Renamed in transformers 5.23 (activation_checkpointing_enable); older 5.x know only this name.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")

every_family = pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)


@pytest.mark.parametrize("positions", ["window_start", "none"])
@every_family
def test_a_row_that_sees_its_previous_window_has_the_logits_of_reading_it_first(
    entry: Family, positions: str
) -> None:
    model = attached(entry, positions=positions)
    input_ids, mask = text(2 * WINDOW, padding=(0, 4))
    plan = longfocus.paper_plan(2, d=1)
    with torch.no_grad():
        logits = model(
            input_ids=stacked(input_ids),
            attention_mask=stacked(mask),
            additional_contexts=plan,
            use_cache=False,
        ).logits
    memory = Memory(entry.memory_layers, positions)
    expected = oracle_logits(tiny_model(entry), input_ids, [0, WINDOW], memory, attention_mask=mask)
    real = stacked(mask).bool()
    torch.testing.assert_close(logits[real], stacked(expected)[real], atol=5e-5, rtol=0)


def stacked(rows: torch.Tensor) -> torch.Tensor:
    """[documents, 2 windows] -> [2 documents, window]: all previous windows, then all current ones."""
    return torch.cat(rows.split(WINDOW, dim=1))


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "gpt_oss"])
def test_positive_and_negative_contexts_share_one_softmax_with_the_window(name: str) -> None:
    entry, layer = family(name), 2
    model = attached(
        Family(entry.name, entry.model_type, entry.settings, (layer,), entry.attention)
    )
    # With one memory layer, windows read in order do not change what the next ones remember.
    input_ids, _ = text(3 * WINDOW, padding=(0,))
    plan = torch.tensor([[-1, -1], [-1, -1], [1, 0]])
    with torch.no_grad():
        logits = model(
            input_ids=stacked(input_ids), additional_contexts=plan, use_cache=False
        ).logits
    expected = oracle_logits(
        tiny_model(entry), input_ids, [0, WINDOW, 2 * WINDOW], Memory((layer,))
    )
    torch.testing.assert_close(logits[2], expected[0, -WINDOW:], atol=5e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox", "gemma3", "gpt_oss"])
def test_gradients_of_crossbatch_do_not_change_under_gradient_checkpointing(
    name: str, reentrant: bool
) -> None:
    model = attached(family(name)).train()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients(model)
    for parameter in plain:
        torch.testing.assert_close(checkpointed[parameter], plain[parameter], msg=parameter)


def test_checkpointing_is_refused_where_recomputed_layers_would_lose_the_plan() -> None:
    model = attached(family("stablelm")).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(longfocus.LongFocusError, match="checkpointing"):
        gradients(model)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Gradients of the loss of current windows that see their previous ones."""
    input_ids, _ = text(2 * WINDOW, padding=(0, 0))
    rows = stacked(input_ids)
    labels = rows.clone()
    labels[:2] = -100
    model.zero_grad()
    plan = longfocus.paper_plan(2, d=2)
    model(rows, labels=labels, additional_contexts=plan, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
