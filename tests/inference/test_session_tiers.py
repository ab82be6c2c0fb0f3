"""Sessions with a budget of memory, with int8 memory and with approximate search: the same conversations."""

import errno
import os
from pathlib import Path

import pytest
from talking import SAID, chatting, every_memory, talk

import longfocus
from longfocus import LongFocusError, Session
from small import TEXT, byte_tokenizer, small_model


def budgeted(
    layers: tuple[int, ...], budget: int | None, folder: Path, **settings: object
) -> Session:
    return Session(
        small_model(layers, **settings),
        byte_tokenizer(chat=True),
        memory_budget=budget,
        spill_folder=folder,
    )


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"memory_dtype": "int8"}, {"search": "clustered"}])
@every_memory
def test_a_memory_that_outgrows_its_budget_says_the_same(
    layers: tuple[int, ...],
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 40)
    said = []
    for budget in (None, 10_000, 0):
        own = budgeted(layers, budget, tmp_path, **settings)
        own.read(TEXT, "told")
        said.append((own.documents[0].hash, talk(own), own.ask("Who?", 40).token_ids))
        assert (own.rooms.on_disk > 0) == (budget is not None)
    assert said[1:] == said[:1] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_full_disk_in_the_middle_of_an_answer_leaves_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = (budgeted((0, 2), 0, tmp_path) for _ in range(2))
    assert talk(own, SAID[:2]) == talk(other, SAID[:2])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "posix_fallocate", full)
        with pytest.raises(LongFocusError, match="No space left"):
            own.chat(SAID[2], 200)
    assert len(own.messages) == 4
    assert talk(own, SAID[2:]) == talk(other, SAID[2:])


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"memory_dtype": "int8"}, {"search": "clustered"}])
@every_memory
def test_sessions_with_other_memories_are_saved_and_go_on(
    layers: tuple[int, ...],
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 40)
    own = chatting(layers, **settings)
    talk(own, SAID[:2])
    own.save(tmp_path / "s.session")
    loaded = Session.load(
        tmp_path / "s.session", own.model, own.tokenizer, memory_budget=0, spill_folder=tmp_path
    )
    assert talk(loaded, SAID[2:]) == talk(own, SAID[2:])
    assert loaded.rooms.on_disk > 0


def test_a_document_of_int8_is_read_as_such() -> None:
    model = small_model((0, 2), memory_dtype="int8")
    document = longfocus.read_document(model, byte_tokenizer(), TEXT)
    assert document.description.dtype == "int8"
    wide = longfocus.read_document(small_model((0,)), byte_tokenizer(), TEXT)
    narrow = longfocus.read_document(small_model((0,), memory_dtype="int8"), byte_tokenizer(), TEXT)
    assert narrow.hash == wide.to("int8").hash
    session = longfocus.Session(small_model((0,)), byte_tokenizer(), memory_dtype="int8")
    assert session.read(TEXT).hash == narrow.hash
    assert session.nbytes == narrow.nbytes < wide.nbytes


def test_a_session_says_what_its_search_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 40)
    dense = chatting()
    talk(dense, SAID[:1])
    assert dense.retained == {}
    own = chatting(search="clustered")
    assert own.fork().retained is not None
    talk(own, SAID[:1])
    assert set(own.retained) == {0, 2}
    assert all(found.mean > 0.999 for found in own.retained.values())
    assert own.fork().retained == own.retained
