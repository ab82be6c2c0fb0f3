"""Sessions as files: they go on as if they had not been saved, and are refused where they could not."""

import shutil
from pathlib import Path

import pytest
import torch
from talking import SAID, chatting, every_memory, every_positions, talk

import longfocus
from long import mostly_long
from longfocus import LongFocusError, Session
from longfocus.memory.tensor_file import TensorFile, write_tensors
from small import TEXT, WINDOW, byte_tokenizer, small_model

OTHER_PIECES = 2 * WINDOW
"""Tokens of answers after which what is loaded lies in other pieces than what went on."""


@pytest.mark.long
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@every_positions
@every_memory
def test_a_saved_session_of_any_kind_goes_on_bit_for_bit(
    layers: tuple[int, ...], positions: str, dtype: str | None, tmp_path: Path
) -> None:
    goes_on(layers, positions, dtype, tmp_path)


def test_a_saved_session_goes_on_bit_for_bit(tmp_path: Path) -> None:
    goes_on((1,), "window_start", None, tmp_path)


def test_a_saved_session_whose_memory_lies_in_other_pieces_goes_on_up_to_rounding(
    tmp_path: Path,
) -> None:
    own = chatting((1,))
    talk(own, SAID[:3], OTHER_PIECES)
    own.save(tmp_path / "s.session")
    loaded = Session.load(tmp_path / "s.session", own.model, own.tokenizer)
    assert talk(loaded, SAID, OTHER_PIECES) == talk(own, SAID, OTHER_PIECES)
    one, other = (session._conversation.cache for session in (loaded, own))
    pieces = [[len(part) for part in cache.windows[1].store.parts()] for cache in (one, other)]
    assert pieces[0] != pieces[1]
    for what in (longfocus.FocusCache.memory_keys, longfocus.FocusCache.memory_values):
        torch.testing.assert_close(what(one, 1), what(other, 1), atol=5e-6, rtol=0)


def goes_on(layers: tuple[int, ...], positions: str, dtype: str | None, tmp_path: Path) -> None:
    """With answers of such a length that both memories lie in equal pieces."""
    own = chatting(layers, positions=positions, memory_dtype=dtype)
    talk(own, SAID[:3])
    own.save(tmp_path / "s.session")
    loaded = Session.load(tmp_path / "s.session", own.model, own.tokenizer)
    assert loaded.messages == own.messages
    assert [d.hash for d in loaded.documents] == [d.hash for d in own.documents]
    assert talk(loaded, SAID[3:] + SAID) == talk(own, SAID[3:] + SAID)
    loaded.save(tmp_path / "again.session")
    own.save(tmp_path / "s.session")
    one, other = (TensorFile(tmp_path / name) for name in ("again.session", "s.session"))
    assert one.header.checksum == other.header.checksum


def test_a_session_that_said_nothing_can_be_saved(tmp_path: Path) -> None:
    own = chatting()
    own.save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s", own.model, own.tokenizer)
    assert talk(loaded, SAID[:2]) == talk(own, SAID[:2])


@pytest.mark.long
def test_settings_of_a_session_are_saved_with_it(tmp_path: Path) -> None:
    made = Session(
        small_model((0, 2)),
        byte_tokenizer(chat=True),
        window_prefix="bos",
        search="exact",
        top_k=5,
        memory_dtype="int8",
        system="Be brief.",
    )
    made.read(TEXT)
    talk(made, SAID[:1])
    made.save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s", made.model, made.tokenizer)
    assert loaded.window_prefix == (1,)
    assert loaded.cache().config == made.cache().config
    assert talk(loaded, SAID[1:]) == talk(made, SAID[1:])
    assert loaded.ask("Who?", 5) == made.ask("Who?", 5)


def test_documents_are_found_where_they_were_or_among_those_given(tmp_path: Path) -> None:
    own = chatting()
    talk(own, SAID[:1])
    (tmp_path / "a").mkdir()
    own.save(tmp_path / "a" / "s")
    # the folder moves as a whole
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    loaded = Session.load(tmp_path / "b" / "s", own.model, own.tokenizer)
    assert loaded.documents[0].path.is_relative_to(tmp_path / "b")
    library = longfocus.Library(tmp_path / "elsewhere")
    library.add(own.documents[0].renamed("another name"))
    library.add(loaded.documents[0].renamed("told"))
    shutil.rmtree(tmp_path / "b" / "s.documents")
    with pytest.raises(
        LongFocusError, match=r"needs the document 'told'.*no longer at.*documents="
    ):
        Session.load(tmp_path / "b" / "s", own.model, own.tokenizer)
    found = Session.load(tmp_path / "b" / "s", own.model, own.tokenizer, documents=library)
    assert [document.name for document in found.documents] == ["told"]


def test_a_session_keeps_documents_whose_files_are_gone(tmp_path: Path) -> None:
    library = longfocus.Library(tmp_path / "library")
    own = Session(small_model((0, 2)), byte_tokenizer(chat=True))
    own.documents = [library.add(own.read(TEXT, "told"))]
    expected = talk(own.fork(), SAID[:2])
    library.remove("told")
    own.save(tmp_path / "s")
    library.add(own.read("another text", "told"))
    loaded = Session.load(tmp_path / "s", own.model, own.tokenizer)
    assert talk(loaded, SAID[:2]) == expected


def test_a_document_that_was_changed_is_refused(tmp_path: Path) -> None:
    own = chatting()
    own.save(tmp_path / "s")
    other = chatting().read("another text", "told")
    other.save(own.documents[0].path)
    with pytest.raises(LongFocusError, match="has changed since"):
        Session.load(tmp_path / "s", own.model, own.tokenizer)


def test_a_session_of_another_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    own = chatting()
    talk(own, SAID[:1])
    own.save(tmp_path / "s")
    with pytest.raises(LongFocusError, match="other settings of the memory: memory_layers"):
        Session.load(tmp_path / "s", small_model((1,)), own.tokenizer)
    with pytest.raises(LongFocusError, match="window, last_context_length"):
        Session.load(tmp_path / "s", small_model((0, 2), window=32, last_context_length=9))
    other = small_model.__wrapped__((0, 2))
    with torch.no_grad():
        # behind the last memory layer: documents could be used, a conversation's windows not
        other.model.norm.weight.mul_(1.5)
    with pytest.raises(LongFocusError, match="another model"):
        Session.load(tmp_path / "s", other, own.tokenizer)
    grown = byte_tokenizer.__wrapped__(chat=True)
    grown.add_tokens(["owl"])
    with pytest.raises(LongFocusError, match="another tokenizer"):
        Session.load(tmp_path / "s", own.model, grown)


ALTERED = {
    "length": {"length": 9},
    "length of another type": {"length": "9"},
    "start": {"start": 3},
    "origin": {"origin": [1]},
    "blocks": {"blocks": {"0": -1, "2": 1}},
    "fewer blocks": {"blocks": {"0": 0, "2": 0}},
}


@pytest.mark.parametrize("what", mostly_long(ALTERED, "length"))
def test_a_state_that_makes_no_sense_is_refused(what: str, tmp_path: Path) -> None:
    own = chatting()
    talk(own, SAID[:2])
    own.save(tmp_path / "s")
    file = TensorFile(tmp_path / "s")
    tensors = {name: file.tensor(name) for name in file.header.entries}
    metadata = dict(file.header.metadata)
    write_tensors(
        tmp_path / "t", tensors, {**metadata, "cache": {**metadata["cache"], **ALTERED[what]}}
    )
    with pytest.raises(LongFocusError, match="makes no sense"):
        Session.load(tmp_path / "t", own.model, own.tokenizer)


@pytest.mark.parametrize("what", mostly_long(["nan", "shape", "missing", "unknown", "ids"], "nan"))
def test_tensors_that_fit_no_conversation_are_refused(what: str, tmp_path: Path) -> None:
    own = chatting()
    talk(own, SAID[:2])
    own.save(tmp_path / "s")
    file = TensorFile(tmp_path / "s")
    tensors = {name: file.tensor(name).clone() for name in file.header.entries}
    memory = next(name for name in tensors if name.startswith("memory.2.0.key"))
    if what == "nan":
        tensors[memory][0, 0, 0, 0] = torch.nan
    elif what == "shape":
        tensors[memory] = tensors[memory][:, :, :-1]
    elif what == "missing":
        del tensors["window.1.values"]
    elif what == "unknown":
        tensors["more"] = torch.zeros(1)
    else:
        tensors["ids"] = tensors["ids"][:-3]
    write_tensors(tmp_path / "t", tensors, file.header.metadata)
    with pytest.raises(LongFocusError, match="makes no sense"):
        Session.load(tmp_path / "t", own.model, own.tokenizer)


def test_settings_and_documents_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    own = chatting()
    own.save(tmp_path / "s")
    file = TensorFile(tmp_path / "s")
    tensors = {name: file.tensor(name) for name in file.header.entries}
    for wrong in (
        {"settings": {"bogus": 1}},
        {"documents": [{"name": "a", "hash": [], "path": 3}]},
    ):
        write_tensors(tmp_path / "t", tensors, {**file.header.metadata, **wrong})
        with pytest.raises(LongFocusError):
            Session.load(tmp_path / "t", own.model, own.tokenizer)


def test_a_file_that_is_no_session_is_refused(tmp_path: Path) -> None:
    own = chatting()
    own.documents[0].save(tmp_path / "document")
    with pytest.raises(LongFocusError, match="not a longfocus session"):
        Session.load(tmp_path / "document", own.model, own.tokenizer)
    own.save(tmp_path / "s")
    metadata = dict(TensorFile(tmp_path / "s").header.metadata)
    ids = torch.zeros(1, dtype=torch.int32)
    write_tensors(tmp_path / "newer", {"ids": ids}, {**metadata, "version": 9})
    with pytest.raises(LongFocusError, match=r"version 9.*newer LongFocus"):
        Session.load(tmp_path / "newer", own.model, own.tokenizer)
    write_tensors(tmp_path / "odd", {"ids": ids}, {**metadata, "cache": {"length": 3}})
    with pytest.raises(LongFocusError, match="makes no sense"):
        Session.load(tmp_path / "odd", own.model, own.tokenizer)
    data = bytearray((tmp_path / "s").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(LongFocusError):
        Session.load(tmp_path / "s", own.model, own.tokenizer)
