"""Models with memory are saved and loaded like any other; published LongLLaMA folders load without their code."""

import copy
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import attached, text
from generation import ENTRY
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

import longfocus
from families import family, tiny_model

PUBLISHED = Path(__file__).parents[1] / "golden" / "data" / "open" / "inference" / "models"
AUTO_MAP = {
    "AutoConfig": "configuration_longllama.LongLlamaConfig",
    "AutoModelForCausalLM": "modeling_longllama.LongLlamaForCausalLM",
}

every_published = pytest.mark.parametrize("name", ["a", "b", "c"])


def published(name: str, folder: Path, **changes: Any) -> Path:
    """A copy of a published folder, with `changes` in its config.json."""
    shutil.copytree(PUBLISHED / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def logits(model: PreTrainedModel, length: int = 150) -> torch.Tensor:
    with torch.no_grad():
        return model(text(length)[0]).logits


@every_published
def test_a_published_folder_loads_without_its_code_also_where_it_names_it(
    name: str, tmp_path: Path
) -> None:
    folder = published(name, tmp_path / "named", auto_map=AUTO_MAP)
    model = longfocus.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    told = json.loads((folder / "config.json").read_text())
    config = model.focus.config
    assert list(config.memory_layers) == told["mem_layers"]
    assert config.window == told["max_position_embeddings"]
    assert config.last_context_length == told["last_context_length"]
    assert config.positions == ("window_start" if told["mem_positionals"] else "none")
    assert (config.split, config.memory_dtype) == ("longllama", told["mem_dtype"])
    weights = load_file(folder / "model.safetensors")
    assert all(model.state_dict()[n].equal(w) for n, w in weights.items())
    assert logits(model).equal(logits(longfocus.from_pretrained(PUBLISHED / name)))


@every_published
def test_a_published_model_saved_and_loaded_again_has_the_same_logits(
    name: str, tmp_path: Path
) -> None:
    model = longfocus.from_pretrained(PUBLISHED / name)
    model.save_pretrained(tmp_path)
    again = longfocus.from_pretrained(tmp_path)
    assert again.focus.config == model.focus.config
    assert logits(again).equal(logits(model))


@every_published
def test_a_saved_published_model_is_a_plain_llama_for_everyone_else(
    name: str, tmp_path: Path
) -> None:
    longfocus.from_pretrained(PUBLISHED / name).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is LlamaForCausalLM
    expected = longfocus.detach(longfocus.from_pretrained(PUBLISHED / name))
    assert logits(plain).equal(logits(expected))


def test_published_defaults_hold_where_a_config_is_silent(tmp_path: Path) -> None:
    folder = published("a", tmp_path / "silent")
    told = json.loads((folder / "config.json").read_text())
    for field in ("last_context_length", "mem_positionals", "mem_dtype"):
        told.pop(field, None)
    (folder / "config.json").write_text(json.dumps(told))
    config = longfocus.from_pretrained(folder).focus.config
    assert config.last_context_length == 1024
    assert (config.positions, config.memory_dtype) == ("window_start", "bfloat16")


def test_frequencies_that_old_checkpoints_carry_are_ignored(tmp_path: Path) -> None:
    folder = published("a", tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    for layer in range(4):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = longfocus.from_pretrained(folder)
    assert logits(model).equal(logits(longfocus.from_pretrained(PUBLISHED / "a")))


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "gpt_oss", "stablelm"])
def test_a_saved_model_loads_with_its_memory_and_as_the_stock_model(
    name: str, tmp_path: Path
) -> None:
    entry = family(name)
    model = attached(entry, search="exact", top_k=7, memory_dtype="bfloat16")
    model.save_pretrained(tmp_path)
    same = {"attn_implementation": entry.attention[0], "experts_implementation": "eager"}
    again = longfocus.from_pretrained(tmp_path, **same)
    assert again.focus.config == model.focus.config
    assert logits(again, 40).equal(logits(model, 40))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, **same)
    assert type(plain) is type(tiny_model(entry))
    assert logits(plain, 40).equal(logits(tiny_model(entry), 40))


def test_a_stock_model_loaded_from_a_saved_folder_can_be_attached_again(tmp_path: Path) -> None:
    model = attached(ENTRY)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = longfocus.FocusConfig.from_dict(AutoConfig.from_pretrained(tmp_path).focus)
    assert logits(longfocus.attach(plain, config)).equal(logits(model))


def gated() -> PreTrainedModel:
    model = attached(ENTRY, merge="gate")
    torch.manual_seed(6)
    for name, parameter in model.named_parameters():
        if name.endswith("focus_gate"):
            torch.nn.init.normal_(parameter)
    return model


def test_gates_are_saved_and_loaded_and_no_burden_for_the_stock_model(tmp_path: Path) -> None:
    model = gated()
    model.save_pretrained(tmp_path)
    again = longfocus.from_pretrained(tmp_path)
    gates = {n: p for n, p in again.named_parameters() if n.endswith("focus_gate")}
    assert len(gates) == 2
    assert all(p.equal(dict(model.named_parameters())[n]) for n, p in gates.items())
    assert all(p.requires_grad for p in gates.values())
    assert logits(again).equal(logits(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is LlamaForCausalLM
    assert logits(plain).equal(logits(tiny_model(ENTRY)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_type_may_be_chosen_when_loading(dtype: torch.dtype, tmp_path: Path) -> None:
    gated().save_pretrained(tmp_path / "gated")
    model = longfocus.from_pretrained(tmp_path / "gated", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    saved = attached(ENTRY)
    saved.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = longfocus.attach(plain, saved.focus.config)
    assert logits(longfocus.from_pretrained(tmp_path, dtype=dtype)).equal(logits(expected))
    model = longfocus.from_pretrained(PUBLISHED / "a", dtype=dtype)
    cache = model(text(60)[0]).past_key_values
    assert cache.memory_keys(1).dtype == torch.float32
    assert cache.window_keys(1).dtype == dtype


def test_the_weights_may_be_loaded_through_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = attached(ENTRY)
    model.save_pretrained(tmp_path)
    again = longfocus.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert logits(again).equal(logits(model))


def copies() -> dict[str, Any]:
    def saved(model: PreTrainedModel) -> PreTrainedModel:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "torch.save": saved,
    }


@pytest.mark.parametrize("way", copies())
@pytest.mark.parametrize("make", [attached, lambda entry: gated()], ids=["joint", "gate"])
def test_a_copy_of_an_attached_model_is_complete_and_independent(way: str, make: Any) -> None:
    model = make(ENTRY)
    expected = logits(model)
    twin = copies()[way](model)
    assert type(twin) is type(model)
    assert logits(twin).equal(expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    longfocus.detach(twin)
    assert type(twin) is LlamaForCausalLM
    assert logits(model).equal(expected)
    assert model(text(40)[0]).past_key_values.memory_length(1) > 0


def test_the_weights_of_an_attached_model_have_the_stock_names() -> None:
    model = attached(ENTRY)
    assert list(model.state_dict()) == list(tiny_model(ENTRY).state_dict())


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"(?s)nowhere/at_all.*config\.json"):
        longfocus.from_pretrained("nowhere/at_all")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(longfocus.LongFocusError, match=str(tmp_path)):
        longfocus.from_pretrained(tmp_path)


def test_a_checkpoint_without_memory_is_refused_and_attach_is_named(tmp_path: Path) -> None:
    tiny_model(ENTRY).save_pretrained(tmp_path)
    with pytest.raises(longfocus.LongFocusError, match=r"llama.*longfocus\.attach"):
        longfocus.from_pretrained(tmp_path)


def test_a_detached_model_is_saved_without_memory(tmp_path: Path) -> None:
    longfocus.detach(attached(ENTRY)).save_pretrained(tmp_path)
    assert "focus" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(longfocus.LongFocusError, match="without memory"):
        longfocus.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": "no_such_thing"}, "no_such_thing"),
        ({"focus": {"memory_layers": [9], "window": 13}}, r"memory_layers=\(9,\).*4 layers"),
        ({"focus": {"memory_layers": [1], "window": 13, "flux": 1}}, "flux.*newer"),
        ({"focus": {"memory_layers": [1], "window": 13, "positions": "moon"}}, "moon"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_is_refused_with_the_reason(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    attached(ENTRY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(longfocus.LongFocusError, match=message):
        longfocus.from_pretrained(tmp_path)


def test_missing_weights_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    attached(ENTRY).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises((longfocus.LongFocusError, OSError), match=str(tmp_path)):
        longfocus.from_pretrained(tmp_path)
