"""Reading into a library: what is there is not read again, and nothing that goes wrong changes it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from collecting import (
    CHANGES,
    SHORT,
    STEPS,
    every_memory,
    files,
    interrupting,
    read,
    small_batches,
    steps,
    visible,
)

import longfocus
from longfocus import Library, LongFocusError
from longfocus.memory import tensor_file
from longfocus.memory.document_file import tensors_of
from small import TEXT, byte_tokenizer, ids_of, small_model


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


@every_memory
def test_what_is_unchanged_is_not_read(layers: tuple[int, ...], tmp_path: Path) -> None:
    with steps(layers) as made:
        first = read(tmp_path, layers=layers)
        assert (first.outcome, len(made)) == ("read", STEPS[layers])
        before = files(tmp_path)
        again = read(tmp_path, layers=layers)
        assert (again.outcome, len(made)) == ("unchanged", STEPS[layers])
    assert again.document.hash == first.document.hash
    assert files(tmp_path) == before
    assert list(before) == ["owl.safetensors"]


def test_what_is_read_is_what_a_session_reads(tmp_path: Path) -> None:
    found = read(tmp_path, metadata={"language": "en"}, window_prefix=(1, 5)).document
    expected = longfocus.read_document(
        small_model(),
        byte_tokenizer(),
        SHORT,
        "owl",
        metadata={"language": "en"},
        window_prefix=[1, 5],
    )
    assert found.hash == expected.hash
    assert found.path == tmp_path / "owl.safetensors"


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_read_again_and_back(change: str, tmp_path: Path) -> None:
    made = CHANGES[change]()
    assert read(tmp_path / "changed", **made).outcome == "read"
    assert read(tmp_path / "plain").outcome == "read"
    both = {name: files(tmp_path / name) for name in ("plain", "changed")}
    assert both["plain"] != both["changed"]
    outcome = "replaced" if change == "text" else "read again"
    again = read(tmp_path / "plain", **made)
    assert (again.outcome, again.tokens_before) == (
        outcome,
        len(SHORT.encode()) if change == "text" else 0,
    )
    assert files(tmp_path / "plain") == both["changed"]
    assert read(tmp_path / "plain", **made).outcome == "unchanged"
    assert read(tmp_path / "plain").outcome == outcome
    assert files(tmp_path / "plain") == both["plain"]


def test_an_error_in_the_middle_leaves_the_library_and_the_old_document(tmp_path: Path) -> None:
    model = small_model.__wrapped__()
    with torch.no_grad():
        model.model.embed_tokens.weight[int(ids_of("~"))] = torch.nan
    old = read(tmp_path, model=model).document
    before = files(tmp_path)
    for _ in range(2):
        with pytest.raises(LongFocusError, match="NaN or infinite, so they cannot enter"):
            read(tmp_path, TEXT[:70] + "~" + TEXT[70:], model=model)
        assert visible(files(tmp_path)) == before
        assert Library(tmp_path).open("owl").hash == old.hash
    assert read(tmp_path, model=model).outcome == "unchanged"
    # nothing is left of what could not be read
    assert files(tmp_path) == before


def test_a_full_disk_leaves_the_old_document_and_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(tmp_path / "whole")
    read(tmp_path / "parts", TEXT[50:60])
    before = files(tmp_path / "parts")
    with monkeypatch.context() as patched, steps() as made:
        patched.setattr(tensor_file, "write_all", full)
        with pytest.raises(
            LongFocusError, match=r"owl\.safetensors cannot be written: the disk is"
        ):
            read(tmp_path / "parts")
        assert visible(files(tmp_path / "parts")) == before
        patched.undo()
    with steps() as made:
        assert read(tmp_path / "parts").outcome == "replaced"
    assert made == []
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def full(*given: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["header", "token_ids"])
def test_a_document_that_is_damaged_is_read_again(part: str, tmp_path: Path) -> None:
    given = SHORT if part == "header" else ids_of(SHORT)
    kept = read(tmp_path, given).document
    assert kept.path is not None
    expected = files(tmp_path)
    data = bytearray(kept.path.read_bytes())
    # token ids lie behind keys and values of four bytes, and end the file
    data[100 if part == "header" else -1] ^= 1
    kept.path.write_bytes(data)
    assert read(tmp_path, given).outcome == "read again"
    assert files(tmp_path) == expected


@pytest.mark.parametrize("name", ["x" * 250, "", "a\udcffb"], ids=ascii)
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    given = tmp_path / (name or " ")
    with steps() as made, pytest.raises(LongFocusError, match="Choose another"):
        read(tmp_path / "library", given if name else SHORT, name=name or " ")
    assert made == []
    assert files(tmp_path / "library") == {}


def test_a_search_counts_where_windows_look_at_earlier_ones(tmp_path: Path) -> None:
    searches = [{}, {"search": "exact", "top_k": 3}, {"search": "exact", "top_k": 5}]
    for layers, outcomes in (((1,), ["read", "unchanged"]), ((0, 1), ["read", "read again"])):
        folder = tmp_path / str(layers)
        models = [small_model(layers, **search) for search in searches]
        found = [read(folder, model=model).outcome for model in models]
        assert found == [*outcomes, outcomes[1]]


def test_metadata_that_are_not_given_are_those_that_were(tmp_path: Path) -> None:
    first = read(tmp_path, metadata={"language": "en"}).document
    assert read(tmp_path, metadata=None).outcome == "unchanged"
    again = read(tmp_path, SHORT + "!", metadata=None)
    assert (again.outcome, again.document.metadata) == ("replaced", first.metadata)
    assert read(tmp_path, SHORT + "!").document.metadata == {}


def test_a_document_of_a_newer_format_is_refused_and_stays(tmp_path: Path) -> None:
    made = read(tmp_path).document
    assert made.path is not None
    newer = {**made.description.to_dict(), "version": 99}
    tensor_file.write_tensors(made.path, tensors_of(made.content, made.layers), newer)
    before = files(tmp_path)
    with steps() as done, pytest.raises(LongFocusError, match=r"version 99.*newer LongFocus"):
        read(tmp_path, SHORT + "!")
    assert (done, files(tmp_path)) == ([], before)


def test_an_iterator_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match="Give a list of texts, or a Path"):
        read(tmp_path, iter([SHORT]))
    assert files(tmp_path) == {}


def test_what_another_process_is_reading_is_refused(tmp_path: Path) -> None:
    def meanwhile(done: int, is_all: bool) -> None:
        if not is_all:
            with pytest.raises(LongFocusError, match="Wait for it, or stop it"):
                read(tmp_path)
            # another source does not wait for this one
            assert read(tmp_path, name="eagle").outcome in ("read", "unchanged")

    assert read(tmp_path, progress=meanwhile).outcome == "read"
    assert sorted(files(tmp_path)) == ["eagle.safetensors", "owl.safetensors"]


def test_in_other_types_the_file_holds_what_converting_the_document_gives(tmp_path: Path) -> None:
    plain = read(tmp_path / "plain").document
    for dtype in ("bfloat16", "float16", "int8"):
        folder = tmp_path / dtype
        with pytest.raises(KeyboardInterrupt):
            read(folder, memory_dtype=dtype, progress=interrupting(2))
        found = read(folder, memory_dtype=dtype)
        assert (found.outcome, found.document.hash) == ("read", plain.to(dtype).hash)
        assert read(folder, memory_dtype=dtype).outcome == "unchanged"
