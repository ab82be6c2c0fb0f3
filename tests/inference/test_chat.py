"""A conversation that goes on: turns, forks, marks."""

import logging
from typing import Any

import pytest
import torch
from talking import LONG, SAID, chatting, every_memory, every_positions, talk
from transformers import GenerationConfig

import longfocus
from longfocus import LongFocusError, Session
from longfocus.inference.conversation import Conversation
from small import KEPT, WINDOW, byte_tokenizer, ids_of, session, small_model


def pointers(own: Session) -> set[int]:
    """Where the conversation's own memory lies."""
    layers = own._conversation.cache.windows
    stores = [layer.store for layer in layers if hasattr(layer, "store")]
    return {part.key.data_ptr() for store in stores for part in store.parts()}


@every_positions
@every_memory
def test_turns_continue_one_stream_of_tokens(layers: tuple[int, ...], positions: str) -> None:
    own = chatting(layers, positions=positions)
    given: list[int] = []
    cache = longfocus.FocusCache(own.model, own.documents)
    for number, said in enumerate(SAID[:3]):
        turn = f"[user] {said}\n[answer] "
        given += [1, *ids_of(turn)] if number == 0 else ids_of("\n" + turn).tolist()
        sequences = own.model.generate(
            torch.tensor([given]), past_key_values=cache, max_new_tokens=LONG, do_sample=False
        )
        new = sequences[0, len(given) :].tolist()
        assert list(own.chat(said, LONG).token_ids) == new
        given += new
    assert [message["role"] for message in own.messages] == ["user", "assistant"] * 3
    assert [message["content"] for message in own.messages][::2] == SAID[:3]


def test_without_a_template_what_is_said_is_appended() -> None:
    own, plain = session(), session()
    first = own.chat("abc", 5).token_ids
    second = own.chat("def", 5).token_ids
    whole = [*ids_of("abc").tolist(), *first, *ids_of("def").tolist()]
    cache = plain.cache()
    plain.model.generate(
        torch.tensor([whole[: 3 + 5]]), past_key_values=cache, max_new_tokens=1, do_sample=False
    )
    assert tuple(plain.ask([whole], 5)[0].token_ids) == second


def test_the_token_that_ends_an_answer_is_not_said_twice() -> None:
    own = chatting()
    free = own.fork().chat(SAID[0], 9).token_ids
    end = free[3]
    answer = own.chat(SAID[0], 9, eos_token_id=end)
    assert answer.token_ids == free[: free.index(end) + 1]
    behind = byte_tokenizer().decode([end])
    ids = own._prompts.turn(own.messages, "more", end)
    assert byte_tokenizer().decode(ids) == ("\n[user] more\n[answer] ").removeprefix(behind)


def test_a_system_message_begins_the_conversation_and_every_question() -> None:
    own = Session(small_model(), byte_tokenizer(chat=True), system="Be brief.")
    own.chat("Who?", 3)
    assert own.messages[0] == {"role": "system", "content": "Be brief."}
    prompt = own.ask("Who?", 3).asked.prompt
    assert byte_tokenizer().decode(prompt[1:]) == "[system] Be brief.\n[user] Who?\n[answer] "
    with pytest.raises(LongFocusError, match="chat template"):
        Session(small_model(), byte_tokenizer(), system="Be brief.")


def test_a_question_sees_nothing_of_the_conversation() -> None:
    own = chatting()
    before = own.ask("Who?", 9)
    talk(own)
    assert own.ask("Who?", 9) == before


@every_memory
def test_forks_go_on_alone_from_a_common_past(layers: tuple[int, ...]) -> None:
    expected = talk(chatting(layers))
    own = chatting(layers)
    assert talk(own, SAID[:2]) == expected[:2]
    fork = own.fork()
    # in turn, so that each would see what the other wrote into shared room
    for place in (2, 3):
        other = fork.chat("something else " * 4, LONG).token_ids
        assert own.chat(SAID[place], LONG).token_ids == expected[place]
        assert fork.messages[-1]["content"] != own.messages[-1]["content"]
        assert len(other) == LONG
    again = chatting(layers)
    talk(again, SAID[:2])
    for _ in range(2):
        last = again.chat("something else " * 4, LONG).token_ids
    assert other == last


def test_a_fork_copies_no_memory() -> None:
    own = chatting()
    talk(own)
    fork = own.fork()
    assert pointers(fork) == pointers(own)
    fork.chat("!", LONG)
    assert pointers(own) <= pointers(fork)


def test_documents_of_a_fork_are_its_own() -> None:
    own = chatting()
    fork = own.fork()
    fork.read("something new", "new")
    assert [document.name for document in own.documents] == ["told"]
    fork.forget("told")
    assert [document.name for document in fork.documents] == ["new"]
    assert own.chat("Who?", 9) == chatting().chat("Who?", 9)
    with pytest.raises(LongFocusError, match=r"no document 'told'.*'new'"):
        fork.forget("told")


@every_memory
def test_rewinding_gives_what_would_have_been_said(layers: tuple[int, ...]) -> None:
    own = chatting(layers)
    first = talk(own, SAID[:1])
    mark = own.mark()
    later = talk(own, SAID[1:])
    after = own.mark()
    own.rewind(mark)
    assert len(own.messages) == 2
    own.read("something that will be forgotten", "more")
    talk(own, ["something else"])
    own.rewind(mark)
    assert talk(own, SAID[1:]) == later
    own.rewind(after)
    assert own.messages[0]["content"] == SAID[0]
    assert first == talk(chatting(layers), SAID[:1])


def test_an_interrupted_turn_leaves_the_conversation_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = chatting()
    expected = talk(chatting(), SAID[:3])
    talk(own, SAID[:1])
    calls, forward = 0, type(own.model).read_window
    one_pass = type(own.model)._one_pass

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return one_pass(*args, **kwargs)

    monkeypatch.setattr(type(own.model), "_one_pass", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.chat("something else", LONG)
    monkeypatch.undo()
    assert forward is type(own.model).read_window
    assert talk(own, SAID[1:3]) == expected[1:]


@every_memory
def test_sources_of_a_turn_are_those_of_its_own_time(layers: tuple[int, ...]) -> None:
    own = chatting(layers)
    first = own.chat(SAID[0], 9)
    talk(own, SAID[1:])
    own.forget("told")
    again = chatting(layers).chat(SAID[0], 9)
    assert first.sources == again.sources
    assert {span.document for span in first.sources} == {"told"}


def test_what_a_conversation_cannot_do_is_refused() -> None:
    own = chatting()
    with pytest.raises(LongFocusError, match="num_beams"):
        own.chat("Who?", 3, num_beams=2)
    with pytest.raises(LongFocusError, match=r"Session\.generate"):
        own.chat("Who?", 3, num_return_sequences=2)
    beams = GenerationConfig(num_beams=2, pad_token_id=0)
    with pytest.raises(LongFocusError, match="num_beams"):
        own.chat("Who?", 3, generation_config=beams)
    with pytest.raises(LongFocusError, match="return_dict"):
        own.ask("Who?", 3, generation_config=GenerationConfig(return_dict_in_generate=True))
    with pytest.raises(LongFocusError, match="at least one token"):
        own.chat("", 3)
    own.chat("Who?", 3)
    with pytest.raises(LongFocusError, match="something that is said"):
        own.chat("", 3)
    with pytest.raises(LongFocusError, match="no tokenizer"):
        Session(small_model()).chat("Who?", 3)


def test_a_template_that_repeats_no_answer_is_refused() -> None:
    tokenizer = byte_tokenizer.__wrapped__(chat=True)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    own = Session(small_model(), tokenizer)
    own.chat("Who?", 3)
    with pytest.raises(LongFocusError, match="does not repeat earlier answers"):
        own.chat("Who?", 3)


def test_a_text_beyond_the_positions_of_the_model_is_not_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = small_model.__wrapped__((1,))
    model.config.max_position_embeddings = WINDOW
    own = Session(model, byte_tokenizer())
    # transformers' loggers do not propagate by themselves
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        own.chat("x" * KEPT, 2 * WINDOW)
    finally:
        logger.removeHandler(caplog.handler)
    assert "reminder" not in caplog.text


def test_a_conversation_is_never_changed() -> None:
    own = chatting()
    before = own._conversation
    talk(own, SAID[:1])
    assert isinstance(before, Conversation)
    assert before.messages == before.ids == ()
    assert before.cache.get_seq_length() == 0
