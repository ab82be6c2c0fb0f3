"""A fingerprint is equal for models that read alike, and another for those that do not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attached import WINDOW, attached, text
from torch import Tensor, nn
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, Family, family, tiny_model
from longfocus.hf.fingerprint import model_fingerprint, tokenizer_fingerprint

ENTRY = family("mistral")
"""Its last layer has no memory."""
QUICK = ("mistral", "gpt_neox", "gemma3", "qwen3_moe")
every_family = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.long)
        for entry in FAMILIES
    ],
)


def is_behind(name: str, last_layer: int) -> bool:
    """Whether a weight is used behind the last memory layer only."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    if layer is not None:
        return int(layer[1]) > last_layer
    return "embed" not in name


def pairs(model: PreTrainedModel) -> list[Tensor]:
    layers = longfocus.read_document(model, None, text(40)[0][0]).layers.values()
    return [tensor for part in layers for tensor in (part.key, part.value)]


@every_family
def test_a_model_that_was_saved_and_loaded_has_the_fingerprint(
    entry: Family, tmp_path: Path
) -> None:
    model = attached(entry)
    expected = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    for attention in entry.attention:
        loaded = longfocus.from_pretrained(tmp_path, attn_implementation=attention)
        assert model_fingerprint(loaded) == expected
        loaded.train()
        loaded(text(2 * WINDOW)[0]).logits.sum().backward()
        assert model_fingerprint(loaded) == expected
    config = loaded.focus.config
    again = longfocus.attach(longfocus.detach(loaded), config)
    assert model_fingerprint(again) == expected


@every_family
def test_every_weight_counts_that_shapes_the_memory_and_no_other(entry: Family) -> None:
    model = attached(entry)
    expected = model_fingerprint(model)
    last = max(entry.memory_layers)
    for name, weight in model.named_parameters():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[-1] += 1
        assert (model_fingerprint(model) == expected) == is_behind(name, last), name
        with torch.no_grad():
            weight.copy_(before)
    assert model_fingerprint(model) == expected


@pytest.mark.parametrize(
    "name",
    ["mistral", *(pytest.param(name, marks=pytest.mark.long) for name in ("gpt_neox", "gemma3"))],
)
def test_equal_fingerprints_read_equal_pairs(name: str) -> None:
    model = attached(family(name))
    expected, before = model_fingerprint(model), pairs(model)
    has_read_otherwise = 0
    for _, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += torch.randn_like(weight)
        is_same = all(map(torch.equal, pairs(model), before))
        assert is_same or model_fingerprint(model) != expected
        has_read_otherwise += not is_same
        with torch.no_grad():
            weight.copy_(kept)
    assert has_read_otherwise > 10


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1),
    "foreach": lambda weights: torch.optim.AdamW(weights, lr=0.1, foreach=True),
    # leaves the versions of the weights as they are
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_counts_where_it_shapes_the_memory(optimizer: str) -> None:
    model = attached(ENTRY)
    expected = model_fingerprint(model)
    layers = model.model.layers
    for layer, is_same in ((3, True), (1, False)):
        step = OPTIMIZERS[optimizer](list(layers[layer].parameters()))
        ids = text(20)[0]
        model(ids, labels=ids).loss.backward()
        step.step()
        assert (model_fingerprint(model) == expected) is is_same


def test_weights_that_are_written_behind_the_back_of_autograd_count() -> None:
    model = attached(ENTRY)
    seen = [model_fingerprint(model)]
    weight = model.model.layers[0].mlp.up_proj.weight
    for change in (
        lambda: weight.data.mul_(1.5),
        lambda: setattr(weight, "data", weight.data.clone() + 1),
        lambda: model.load_state_dict(tiny_model(family("qwen2")).state_dict(), strict=False),
        lambda: model.half().float(),
    ):
        change()
        seen.append(model_fingerprint(model))
    assert len({found["weights"] for found in seen}) == len(seen)


def test_quantized_weights_in_buffers_count_and_buffers_that_are_not_saved_do_not() -> None:
    model = attached(ENTRY)
    projection = model.model.layers[0].mlp.up_proj
    projection.register_buffer("qweight", torch.ones(8, dtype=torch.uint8))
    projection.register_buffer("scratch", torch.ones(8), persistent=False)
    expected = model_fingerprint(model)
    projection.scratch += 1
    assert model_fingerprint(model) == expected
    projection.qweight += 1
    assert model_fingerprint(model) != expected


# peft 0.21 asks models by the names that transformers 5.23 deprecates: https://github.com/huggingface/peft
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_adapters_at_work_count() -> None:
    peft = pytest.importorskip("peft")
    model = attached(ENTRY)
    settings = {
        "target_modules": ["k_proj"],
        "layers_to_transform": [1],
        "init_lora_weights": False,
    }
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    wrapped.add_adapter("other", peft.LoraConfig(**settings))
    expected = model_fingerprint(model)
    seen = [expected]
    with wrapped.disable_adapter():
        seen.append(model_fingerprint(model))
    assert model_fingerprint(model) == expected
    wrapped.set_adapter("other")
    seen.append(model_fingerprint(model))
    wrapped.merge_adapter()
    seen.append(model_fingerprint(model))
    assert len({found["weights"] for found in seen}) == len(seen)


def test_a_model_that_shares_its_embedding_with_the_output_is_told_by_it() -> None:
    entry = Family("tied", ENTRY.model_type, {**ENTRY.settings, "tie_word_embeddings": True}, (2,))
    model = attached(entry)
    expected = model_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1
    assert model_fingerprint(model)["weights"] != expected["weights"]


def test_for_a_conversation_every_layer_counts() -> None:
    model = attached(ENTRY)
    expected = model_fingerprint(model, every_layer=True)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    assert model_fingerprint(model, every_layer=True) != expected


def test_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(ENTRY)
    first = model_fingerprint(model)
    monkeypatch.setattr("longfocus.hf.fingerprint.hash_weight", None)
    model(text(20)[0])
    model.train()
    assert model_fingerprint(model) == first


def test_a_tokenizer_keeps_its_fingerprint_while_it_is_used_saved_and_loaded(
    tmp_path: Path,
) -> None:
    tokenizer = longfocus.tokenizer("code")
    expected = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=2)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(tokenizer) == expected
    assert tokenizer_fingerprint(longfocus.tokenizer(tmp_path)) == expected
    assert tokenizer_fingerprint(longfocus.tokenizer("code")) == expected
    assert tokenizer_fingerprint(None) is None
