"""What is given to a session and makes no sense is refused with what would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config

import longfocus
from longfocus import LongFocusError, Session
from longfocus.inference.prompts import Prompts
from small import TEXT, byte_tokenizer, session, small_model


@pytest.fixture(autouse=True)
def _as_users_call() -> Iterator[None]:
    """Only in tests are types checked as they are written."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "question",
    [
        [[]],
        [[3, 4], []],
        [[3, "a"]],
        [[3.0]],
        [[True]],
        [3, 4],
        ["a", [3]],
        ["a", None],
        None,
        5,
        {"role": "user"},
        Path("question.txt"),
        torch.empty(1, 0, dtype=torch.long),
        torch.tensor([[0.5]]),
        torch.tensor([[True]]),
        torch.zeros(1, 2, 3, dtype=torch.long),
        torch.tensor(3),
    ],
    ids=str,
)
@pytest.mark.parametrize("tokenizer", [None, byte_tokenizer()], ids=["without", "with"])
def test_what_is_no_question_is_refused(question: Any, tokenizer: Any) -> None:
    asking = Session(small_model(), tokenizer)
    for ask in (asking.ask, asking.generate):
        with pytest.raises(LongFocusError, match=r"at least one token each. Got"):
            ask(question)


def test_rows_of_token_ids_may_be_lists_or_tuples() -> None:
    asking = session()
    expected = asking.ask([[5, 6], [7]], max_new_tokens=3)
    assert asking.ask(((5, 6), (7,)), max_new_tokens=3) == expected
    assert asking.ask(torch.tensor([5, 6]), max_new_tokens=3) == expected[:1]


@pytest.mark.parametrize("said", [["a", "b"], ["a"], [[5]], None, 5, b"a"], ids=str)
def test_a_turn_is_one_text(said: Any) -> None:
    own = session()
    for _ in range(2):
        with pytest.raises(LongFocusError, match=r"one text. Got .*Use ask"):
            own.chat(said, 3)
        own.chat("Who?", 3)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_nothing_is_no_question(chat: bool, bos: bool) -> None:
    own = Session(small_model(), byte_tokenizer(chat=chat, bos=bos))
    for call in (own.ask, own.chat):
        with pytest.raises(LongFocusError, match="at least one token"):
            call("", 3)
    # a text may begin with a BOS alone
    if bos:
        assert own.generate("", max_new_tokens=3).shape == (1, 4)


@pytest.mark.parametrize(
    "documents", [[Path("owl")], Path("owl"), "owl", ["owl"], 5, [None]], ids=str
)
def test_what_is_no_document_is_refused(documents: Any, tmp_path: Path) -> None:
    for make in (
        lambda: Session(small_model(), documents=documents),
        lambda: Session.load(tmp_path / "none", small_model(), documents=documents),
        lambda: longfocus.FocusCache(small_model(), documents=documents),
    ):
        with pytest.raises(LongFocusError, match=r"documents= takes .* Got .*DocumentMemory\.load"):
            make()


def test_a_document_alone_is_no_list() -> None:
    document = longfocus.read_document(small_model(), byte_tokenizer(), TEXT)
    with pytest.raises(LongFocusError, match="takes a list of document memories"):
        Session(small_model(), documents=document)
    assert Session(small_model(), documents=(document,)).documents == [document]


@pytest.mark.parametrize("name", [5, 0, b"owl", ["owl"], Path("owl"), "half \ud800"], ids=ascii)
def test_a_name_that_no_file_can_hold_is_refused_before_reading(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(small_model()), "read_window", None)
    for call in (
        lambda: longfocus.read_document(small_model(), byte_tokenizer(), TEXT, name),
        lambda: session().read(TEXT, name),
    ):
        with pytest.raises(LongFocusError, match="The name of a document must be text"):
            call()


@pytest.mark.parametrize(
    "metadata", [{"year": 1869}, {5: "a"}, ["a"], "a=b", {"a": "\ud800"}], ids=ascii
)
def test_metadata_that_no_file_can_hold_are_refused_before_reading(
    metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(small_model()), "read_window", None)
    with pytest.raises(LongFocusError, match="The metadata of a document must be text"):
        longfocus.read_document(small_model(), byte_tokenizer(), TEXT, metadata=metadata)


@pytest.mark.parametrize("prefix", ["eos", [1.5], ["a"], [[1]], 5, None, [True]], ids=str)
def test_a_window_prefix_is_a_list_of_token_ids(prefix: Any) -> None:
    for make in (
        lambda: Session(small_model(), byte_tokenizer(), window_prefix=prefix),
        lambda: longfocus.read_document(
            small_model(), byte_tokenizer(), TEXT, window_prefix=prefix
        ),
    ):
        with pytest.raises(LongFocusError, match=r"window_prefix must be 'bos' or token ids. Got"):
            make()


@pytest.mark.parametrize("source", [{"a": 1}, b"text", bytearray(b"text"), 5, None], ids=str)
def test_what_is_no_text_is_not_read(source: Any) -> None:
    with pytest.raises(LongFocusError, match=r"cannot be read as text\. Give a text, a Path"):
        session().read(source)


def test_the_name_of_a_tokenizer_is_no_tokenizer() -> None:
    with pytest.raises(LongFocusError, match=r"Load it: longfocus.tokenizer\('code'\)"):
        Session(small_model(), "code")


TEMPLATES = {
    "{{ raise_exception('no system message') }}": "no system message",
    "{{ messages[0]['content'] + 1 }}": "can only concatenate",
    "{% if %}": "Expected an expression",
    "{{ messages.nothing.more }}": "no attribute 'nothing'",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_chat_template_does_not_take_is_told(template: str) -> None:
    tokenizer = byte_tokenizer.__wrapped__(chat=True)
    tokenizer.chat_template = template
    with pytest.raises(
        LongFocusError, match=f"does not take these messages.*{TEMPLATES[template]}"
    ):
        Prompts(tokenizer, "Be short.").rows("Who?", is_question=True)
    own = Session(small_model(), tokenizer)
    with pytest.raises(LongFocusError, match="chat template"):
        own.chat("Who?", 3)
    assert own.messages == ()
