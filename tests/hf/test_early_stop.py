"""A pass that is only read, or only looks, ends early, at the last memory layer; nothing that comes after differs."""

import pytest
import torch
from attached import WINDOW, attached, text
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, Family, family
from long import mostly_long
from longfocus.hf.attachment import Attachment
from longfocus.hf.trace import Trace
from longfocus.inference import reader

LENGTH = 4 * WINDOW + 5

NAMES = [entry.name for entry in FAMILIES]
every_family = pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)


def prompted(model: PreTrainedModel) -> dict[str, Tensor]:
    """A long prompt, padded in one row, and what is generated behind it: logits, tokens, and all that is remembered."""
    input_ids, mask = text(LENGTH, (0, 5))
    cache = longfocus.FocusCache(model)
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask, logits_to_keep=1).logits
        tokens = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=WINDOW + 3,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    found = {"logits": logits, "tokens": tokens}
    for layer in model.focus.config.memory_layers:
        found[f"keys {layer}"] = cache.memory_keys(layer)
        found[f"values {layer}"] = cache.memory_values(layer)
    return found


def counted(model: PreTrainedModel) -> list[int]:
    """One entry per call of the last module, which windows that are only read do not need."""
    calls: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("positions", mostly_long(["window_start", "none", "true"], "window_start"))
@pytest.mark.parametrize(
    "name", mostly_long(NAMES, "llama_gqa", "gemma3", "qwen3_moe", "gpt_neox", "gpt_oss")
)
def test_ending_early_changes_no_bit_of_logits_memories_and_generations(
    name: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attached(family(name), positions=positions)
    calls = counted(model)
    early, few = prompted(model), len(calls)
    monkeypatch.setattr(Attachment, "last_layer", None)
    whole = prompted(model)
    assert few < len(calls) - few
    assert [name for name in whole if not whole[name].equal(early[name])] == []


@every_family
def test_windows_read_side_by_side_are_those_read_one_by_one_ending_early_or_not(
    entry: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = attached(entry), text(LENGTH)[0][0]
    side_by_side = longfocus.read_document(model, None, ids)
    monkeypatch.setattr(reader, "BATCH_TOKENS", 1)
    one_by_one = longfocus.read_document(model, None, ids)
    monkeypatch.setattr(Attachment, "last_layer", None)
    whole = longfocus.read_document(model, None, ids)
    for layer, part in one_by_one.layers.items():
        for name in ("key", "value"):
            early = getattr(part, name)
            assert early.equal(getattr(whole.layers[layer], name))
            other = getattr(side_by_side.layers[layer], name)
            torch.testing.assert_close(other, early, atol=5e-5, rtol=0)


def looked(model: PreTrainedModel, trace: Trace) -> Trace:
    """What a long prompt of one row, with padding in its last window, looks at."""
    input_ids, mask = text(LENGTH, (0,))
    mask[:, LENGTH - 3] = 0
    cache = longfocus.FocusCache(model)
    model(
        input_ids, attention_mask=mask, past_key_values=cache, focus_trace=trace, logits_to_keep=1
    )
    return trace


@pytest.mark.parametrize("last", mostly_long([None, 1, WINDOW + 2], 1))
@pytest.mark.parametrize("merge", mostly_long(["joint", "gate"], "joint"))
@every_family
@torch.no_grad()
def test_a_pass_that_ends_with_its_looks_has_seen_the_same(
    entry: Family, merge: str, last: int | None
) -> None:
    model = attached(entry, merge=merge)
    calls = counted(model)
    whole, few = looked(model, Trace(4, last)), len(calls)
    early = looked(model, Trace(4, last, ends_pass=True))
    assert few > len(calls) - few
    assert len(whole.queries) == len(early.queries) == (last or LENGTH)
    for one, other in zip(whole.queries, early.queries, strict=True):
        assert [entry[:3] for entry in one] == [entry[:3] for entry in other]
        weights = (torch.tensor([entry[3:] for entry in entries]) for entries in (one, other))
        torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.heat, early.heat, atol=1e-6, rtol=1e-5)
