"""Questions: each alone in a fresh window, with all documents in memory and none in the prompt."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

import longfocus
from long import mostly_long
from longfocus import LongFocusError, Session
from small import (
    TEXT,
    WINDOW,
    assert_same_pairs,
    byte_tokenizer,
    ids_of,
    session,
    small_model,
)

QUESTIONS = ["Who?", "What is the owl's 42nd key, and where did it see it?", "Ça va? 🦉"]
ROOM = 64
"""A window that holds the longest question and its answer."""
GREEDY = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}

every_position = pytest.mark.parametrize("positions", ["window_start", "none"])
every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 2)], (0, 2)), ids=str)


def told(layers: tuple[int, ...] = (1,), **settings: Any) -> Session:
    """A session that has read two documents."""
    made = session(layers, **settings)
    made.read(TEXT)
    made.read(TEXT[::-1])
    return made


def continued(session: Session, ids: Tensor, **kwargs: Any) -> list[int]:
    """What the model itself says behind these token ids, with the documents in memory."""
    cache = longfocus.FocusCache(session.model, session.documents)
    found = session.model.generate(ids[None], past_key_values=cache, **GREEDY, **kwargs)
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize("question", QUESTIONS)
def test_without_a_chat_template_the_text_is_continued(question: str) -> None:
    asking = told()
    answer = asking.ask(question, max_new_tokens=9)
    assert list(answer.token_ids) == continued(asking, ids_of(question))
    assert answer.text == byte_tokenizer().decode(answer.token_ids, skip_special_tokens=True)


def test_special_tokens_that_the_tokenizer_adds_begin_the_question_and_no_document() -> None:
    asking = Session(small_model(), byte_tokenizer(bos=True))
    assert_same_pairs(asking.read(TEXT), session().read(TEXT))
    answer = asking.ask(QUESTIONS[0], max_new_tokens=9)
    prompt = torch.cat([torch.tensor([1]), ids_of(QUESTIONS[0])])
    assert list(answer.token_ids) == continued(asking, prompt)


@pytest.mark.parametrize("bos", [False, True])
def test_a_chat_template_wraps_the_question_once(bos: bool) -> None:
    asking = Session(small_model(), byte_tokenizer(chat=True, bos=bos))
    asking.read(TEXT)
    answer = asking.ask("Who?", max_new_tokens=9)
    prompt = torch.cat([torch.tensor([1]), ids_of("[user] Who?\n[answer] ")])
    assert list(answer.token_ids) == continued(asking, prompt)
    plain = asking.generate(ids_of("Who?")[None], **GREEDY)
    assert plain[0, 4:].tolist() == continued(asking, ids_of("Who?"))


@every_position
def test_a_list_of_questions_is_answered_like_its_questions_one_by_one(positions: str) -> None:
    # with the small window the longest question is cut, and answers leave their window
    for window in (ROOM, WINDOW):
        asking = told((0, 2), positions=positions, window=window)
        together = asking.ask(QUESTIONS, max_new_tokens=6)
        assert together == [asking.ask(question, max_new_tokens=6) for question in QUESTIONS]


@every_position
def test_the_logits_of_a_question_do_not_depend_on_the_batch_it_stands_in(positions: str) -> None:
    asking = told(positions=positions, window=ROOM)
    settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    together = torch.stack(asking.generate(QUESTIONS, **settings).logits, 1)
    for row, question in enumerate(QUESTIONS):
        alone = torch.stack(asking.generate(question, **settings).logits, 1)
        torch.testing.assert_close(together[row], alone[0], atol=2e-4, rtol=0)


def test_answers_that_end_at_different_times_are_those_of_the_questions_alone() -> None:
    asking = told(window=ROOM)
    free = asking.ask(QUESTIONS[0], max_new_tokens=9)
    # the first question's fourth token ends every answer
    stop = {"max_new_tokens": 9, "eos_token_id": free.token_ids[3]}
    alone = [asking.ask(question, **stop) for question in QUESTIONS]
    assert len({len(answer.token_ids) for answer in alone}) > 1
    assert asking.ask(QUESTIONS, **stop) == alone


def test_an_end_in_a_generation_config_is_the_end_of_the_answer() -> None:
    asking = told(window=ROOM)
    free = asking.ask(QUESTIONS, max_new_tokens=9)
    config = asking.model.generation_config
    before, config.eos_token_id = config.eos_token_id, free[0].token_ids[3]
    try:
        first, *_ = asking.ask(QUESTIONS, max_new_tokens=9)
    finally:
        config.eos_token_id = before
    assert first.token_ids == free[0].token_ids[:4]
    given = GenerationConfig(
        eos_token_id=free[0].token_ids[3], max_new_tokens=9, pad_token_id=0, do_sample=False
    )
    sampled = asking.ask(QUESTIONS, generation_config=given, max_new_tokens=9)
    assert sampled[0].token_ids == first.token_ids


def test_several_answers_to_a_question_are_not_taken_for_those_of_others() -> None:
    asking = told(window=ROOM)
    with pytest.raises(LongFocusError, match="num_return_sequences"):
        asking.ask(QUESTIONS, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    beams = asking.ask(QUESTIONS, max_new_tokens=5, num_beams=2)
    alone = [asking.ask(question, max_new_tokens=5, num_beams=2) for question in QUESTIONS]
    assert beams == alone


def test_documents_are_looked_into_and_never_counted() -> None:
    asking = told()
    cache = asking.cache()
    assert cache.get_seq_length() == 0
    assert cache.has_memory()
    assert cache.memory_length(1) == 0
    prompt = ids_of("Who?")[None]
    found = asking.model.generate(
        prompt, past_key_values=cache, return_dict_in_generate=True, **GREEDY
    )
    assert found.sequences[:, :4].equal(prompt)
    assert found.past_key_values.get_seq_length() == 4 + 9 - 1
    mask = torch.ones(1, 4, dtype=torch.long)
    logits = asking.model(prompt, attention_mask=mask, past_key_values=asking.cache()).logits
    assert logits.shape[1] == 4


def test_documents_change_answers_and_an_answer_changes_no_document() -> None:
    asking = told()
    prompt = ids_of("Who?")[None]

    def logits(documents: list[longfocus.DocumentMemory]) -> Tensor:
        with torch.no_grad():
            cache = longfocus.FocusCache(asking.model, documents)
            return asking.model(prompt, past_key_values=cache).logits

    first, second = asking.documents
    before = logits([first, second])
    asking.ask(QUESTIONS, max_new_tokens=WINDOW + 3)
    assert logits([first, second]).equal(before)
    assert not logits([first]).isclose(before, atol=1e-3).all()
    torch.testing.assert_close(logits([second, first]), before, atol=1e-4, rtol=0)
    assert not logits([]).isclose(logits([first]), atol=1e-3).all()


def test_every_question_stands_alone() -> None:
    asking = told()
    first = asking.ask(QUESTIONS[1], max_new_tokens=9)
    asking.ask(QUESTIONS[2], max_new_tokens=9)
    assert asking.ask(QUESTIONS[1], max_new_tokens=9) == first


def test_token_ids_may_be_asked_too() -> None:
    asking = told()
    ids = ids_of(QUESTIONS[0])
    (one,) = asking.ask(ids, max_new_tokens=9)
    both = asking.ask(torch.stack([ids, ids]), max_new_tokens=9)
    assert both == [one, one]
    assert one == asking.ask(QUESTIONS[0], max_new_tokens=9)
    rows = [ids_of(question).tolist() for question in QUESTIONS]
    assert asking.ask(rows, max_new_tokens=9) == asking.ask(QUESTIONS, max_new_tokens=9)
    bare = Session(asking.model, documents=asking.documents)
    (answer,) = bare.ask(ids, max_new_tokens=9)
    assert answer.token_ids == one.token_ids
    assert answer.text == ""


def test_search_and_top_k_of_a_session_override_those_of_the_model() -> None:
    asking = told()
    exact = Session(
        asking.model, byte_tokenizer(), documents=asking.documents, search="exact", top_k=10_000
    )
    one = Session(
        asking.model, byte_tokenizer(), documents=asking.documents, search="exact", top_k=1
    )
    prompt = ids_of(QUESTIONS[0])[None]

    def logits(session: Session) -> Tensor:
        with torch.no_grad():
            return session.model(prompt, past_key_values=session.cache()).logits

    torch.testing.assert_close(logits(exact), logits(asking), atol=1e-4, rtol=0)
    assert not logits(one).isclose(logits(asking), atol=1e-2).all()


@pytest.mark.parametrize("question", ["", ["Who?", ""], []])
def test_an_empty_question_is_refused(question: Any) -> None:
    with pytest.raises(LongFocusError, match="at least one token"):
        told().ask(question)


def test_a_text_question_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(LongFocusError, match="no tokenizer"):
        Session(small_model()).ask("Who?")


def test_a_plain_model_has_no_session() -> None:
    with pytest.raises(LongFocusError, match="attach"):
        Session(torch.nn.Linear(1, 1))


def test_a_pad_token_of_the_caller_is_used_where_the_model_has_none() -> None:
    asking, config = told(), small_model().generation_config
    before, config.pad_token_id = config.pad_token_id, None
    try:
        expected = asking.generate("Who?", do_sample=False, max_new_tokens=3)
        given = asking.generate("Who?", do_sample=False, max_new_tokens=3, pad_token_id=7)
    finally:
        config.pad_token_id = before
    assert given.equal(expected)


@every_memory
def test_sessions_in_several_threads_do_not_disturb_each_other(layers: tuple[int, ...]) -> None:
    texts = [TEXT, TEXT[::-1], TEXT[20:]]

    def work(text: str) -> tuple[longfocus.DocumentMemory, list[longfocus.Answer]]:
        own = session(layers)
        document = own.read(text)
        answers = own.ask(QUESTIONS[::2], max_new_tokens=5)
        assert all(answer.sources for answer in answers)
        return document, answers

    expected = [work(text) for text in texts]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, texts))
    for (document, answers), (same, expected_answers) in zip(found, expected, strict=True):
        assert_same_pairs(document, same)
        assert answers == expected_answers
