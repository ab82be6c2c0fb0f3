"""A checkpoint of 16-bit numbers on a CPU that is slow with them: float32 to compute in, 16 bits for all else."""

from pathlib import Path

import pytest
import torch
from attached import attached, text
from transformers import PreTrainedModel

import longfocus
from families import family
from longfocus.hf import widened
from longfocus.hf.fingerprint import model_fingerprint
from longfocus.memory.document import DocumentMemory

ENTRY = family("llama")
NARROW = pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def folder(tmp_path: Path, narrow: torch.dtype) -> Path:
    """A checkpoint in 16 bits."""
    attached(ENTRY).to(narrow).save_pretrained(tmp_path)
    return tmp_path


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_fast: bool) -> PreTrainedModel:
    """On a processor that is fast with 16 bits, or is not."""
    monkeypatch.setattr(widened, "multiplies", lambda dtype, device: is_fast)
    return longfocus.from_pretrained(folder)


def read(model: PreTrainedModel) -> DocumentMemory:
    return longfocus.read_document(model, None, text(60)[0][0])


@NARROW
def test_a_slow_processor_computes_in_float32_and_remembers_in_the_checkpoints_numbers(
    folder: Path, narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = loaded(folder, monkeypatch, is_fast=True)
    slow = loaded(folder, monkeypatch, is_fast=False)
    assert ({p.dtype for p in fast.parameters()}, {p.dtype for p in slow.parameters()}) == (
        {narrow},
        {torch.float32},
    )
    expected = dict(fast.named_parameters())
    assert all(p.equal(expected[name].float()) for name, p in slow.named_parameters())
    cache = slow(text(60)[0]).past_key_values
    assert cache.memory_keys(1).dtype == narrow
    assert cache.window_keys(1).dtype == torch.float32
    assert [part.key.dtype for part in read(slow).layers.values()] == [
        part.key.dtype for part in read(fast).layers.values()
    ]


@NARROW
def test_documents_go_from_either_kind_of_processor_to_the_other(
    folder: Path, narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = loaded(folder, monkeypatch, is_fast=True)
    slow = loaded(folder, monkeypatch, is_fast=False)
    assert model_fingerprint(fast) == model_fingerprint(slow)
    for reader, user in ((fast, slow), (slow, fast)):
        cache = longfocus.FocusCache(user, [read(reader)])
        assert user(text(8)[0], past_key_values=cache).logits.isfinite().all()


@NARROW
def test_saved_and_loaded_again_it_still_can_use_its_documents(
    folder: Path, narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = loaded(folder, monkeypatch, is_fast=False)
    slow.save_pretrained(folder / "again")
    again = loaded(folder / "again", monkeypatch, is_fast=False)
    longfocus.FocusCache(again, [read(slow)])
    assert (again.dtype, again.focus.config.memory_dtype) == (
        torch.float32,
        str(narrow).removeprefix("torch."),
    )


@NARROW
def test_a_model_that_was_trained_since_has_another_fingerprint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = loaded(folder, monkeypatch, is_fast=False)
    before = model_fingerprint(slow)
    with torch.no_grad():
        # less than the 16 bits can tell
        next(slow.parameters()).mul_(1 + 1e-6)
    after = model_fingerprint(slow)
    assert {name for name in before if before[name] != after[name]} == {"weights", "number_type"}


@NARROW
def test_what_the_caller_chooses_and_what_does_not_fit_is_loaded_as_it_is(
    folder: Path, narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "multiplies", lambda dtype, device: False)
    assert longfocus.from_pretrained(folder, dtype=narrow).dtype == narrow
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert longfocus.from_pretrained(folder).dtype == narrow
    assert longfocus.from_pretrained(folder, device_map="cpu").dtype == torch.float32
    monkeypatch.undo()
    monkeypatch.setattr(widened, "multiplies", lambda dtype, device: False)
    assert longfocus.from_pretrained(folder, dtype="auto").dtype == torch.float32
    parameters = longfocus.from_pretrained(folder).num_parameters()
    room = int(4 * parameters / widened.MOST_OF_MEMORY)
    for installed, expected in ((room, torch.float32), (room - 1, narrow)):
        monkeypatch.setattr(widened, "memory_bytes", lambda installed=installed: installed)
        assert longfocus.from_pretrained(folder).dtype == expected


def test_a_checkpoint_in_float32_and_one_with_a_memory_type_of_its_own_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached(ENTRY).save_pretrained(tmp_path / "wide")
    wide = loaded(tmp_path / "wide", monkeypatch, is_fast=False)
    assert (wide.dtype, wide.focus.config.memory_dtype) == (torch.float32, None)
    attached(ENTRY, memory_dtype="int8").bfloat16().save_pretrained(tmp_path / "int8")
    assert loaded(tmp_path / "int8", monkeypatch, is_fast=False).focus.config.memory_dtype == "int8"
