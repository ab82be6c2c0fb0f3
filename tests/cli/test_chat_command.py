"""`longfocus chat`, talked to from a script: every command, and nothing that goes wrong ends it."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus import DocumentMemory, Library, Session
from longfocus.cli.ask import sources_text
from longfocus.cli.chat import Chat
from longfocus.inference.page.of_answer import answer_page
from longfocus.inference.page.render import render_page
from small import TEXT, byte_tokenizer, small_model

TOKENS = 5
MODEL = ("--max-new-tokens", str(TOKENS))


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A file with the memory of a text."""
    path = tmp_path / "owl.safetensors"
    tokenizer = byte_tokenizer(chat=True)
    longfocus.read_document(small_model(), tokenizer, TEXT, "owl").save(path)
    return path


@pytest.fixture
def talk(run: Any, told: Path) -> Any:
    """Say some lines to the model that has the document in memory."""

    def say(*lines: str, words: tuple[object, ...] = ()) -> Any:
        typed = "".join(f"{line}\n" for line in lines)
        return run("chat", "--documents", told, *MODEL, *words, typed=typed)

    return say


def session(told: Path, **settings: Any) -> Session:
    documents = [DocumentMemory.load(told)]
    return Session(small_model(), byte_tokenizer(chat=True), documents=documents, **settings)


def test_what_is_said_is_answered_in_one_conversation(talk: Any, told: Path) -> None:
    own = session(told)
    said = talk("Who?", "", "   ", "And what?  ", "Why?")
    texts = [own.chat(text, TOKENS).text for text in ("Who?", "And what?", "Why?")]
    assert said == (0, "".join(f"{text}\n" for text in texts), "")
    assert talk() == (0, "", "")
    # without a line end
    assert talk("Who?", "And what?", words=()).out == "".join(f"{text}\n" for text in texts[:2])


def test_settings_are_those_of_a_session(talk: Any, told: Path) -> None:
    words = ("--system", "Be brief.", "--search", "exact", "--top-k", "3")
    own = session(told, system="Be brief.", search="exact", top_k=3)
    assert talk("Who?", words=words).out == own.chat("Who?", TOKENS).text + "\n"


def test_a_temperature_draws_other_answers(talk: Any) -> None:
    import torch

    torch.manual_seed(1)
    drawn = talk("Who?", words=("--temperature", "5")).out
    torch.manual_seed(1)
    assert talk("Who?", words=("--temperature", "5")).out == drawn != talk("Who?").out


def test_help_lists_every_command_with_what_it_does(talk: Any, told: Path) -> None:
    said = talk("/help")
    chat = Chat(session(told), None)  # type: ignore[arg-type]
    assert len(said.out.splitlines()) == len(chat.commands) == 11
    for line, (command, (_, meaning)) in zip(
        said.out.splitlines(), chat.commands.items(), strict=True
    ):
        assert line.split() == [command, *meaning.split()]


def test_documents_are_read_listed_and_forgotten(talk: Any, tmp_path: Path, told: Path) -> None:
    (tmp_path / "two words.txt").write_text("more text")
    said = talk(
        "/documents",
        f"/read {tmp_path}/two words.txt",
        "/documents",
        "/forget owl",
        "/documents",
        "/forget two words.txt",
        "/documents",
        "Who?",
    )
    tokens = len(TEXT.encode())
    owl, two = f"  owl: {tokens} tokens", "  two words.txt: 9 tokens"
    lines = said.out.splitlines()
    assert lines[:11] == [
        owl,
        f"1 document, {tokens} tokens",
        "read two words.txt: 9 tokens",
        owl,
        two,
        f"2 documents, {tokens + 9} tokens",
        "forgot owl",
        two,
        "1 document, 9 tokens",
        "forgot two words.txt",
        "0 documents, 0 tokens",
    ]
    none = Session(small_model(), byte_tokenizer(chat=True))
    assert lines[11:] == none.chat("Who?", TOKENS).text.splitlines()


def test_sources_and_page_are_those_of_the_last_answer(
    talk: Any, told: Path, tmp_path: Path
) -> None:
    said = talk("Who?", "/sources", "And what?", f"/html {tmp_path}/page.html", "/sources")
    own = session(told)
    first, second = own.chat("Who?", TOKENS), own.chat("And what?", TOKENS)
    assert said.out == (
        f"{first.text}\n{sources_text(first).lstrip()}\n"
        f"{second.text}\nwrote {tmp_path}/page.html\n{sources_text(second).lstrip()}\n"
    )
    page = answer_page("And what?", second, own.tokenizer)
    assert (tmp_path / "page.html").read_text() == render_page(page)


def test_undo_takes_back_the_last_question_and_nothing_that_was_read(
    talk: Any, told: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("more text " * 4)
    said = talk("Who?", "And what?", "/undo", "/sources", "And what?", "/undo", "/undo", "/undo")
    own = session(told)
    first, second = own.chat("Who?", TOKENS).text, own.chat("And what?", TOKENS).text
    assert said.out == f"{first}\n{second}\ntaken back\n{second}\ntaken back\ntaken back\n"
    assert said.err.splitlines() == [
        "error: There is no answer yet. Ask something first.",
        "error: There is nothing to take back in this branch.",
    ]
    said = talk("Who?", f"/read {tmp_path}/more.txt", "/forget owl", "/undo", "/documents", "Who?")
    only = Session(small_model(), byte_tokenizer(chat=True))
    only.read(tmp_path / "more.txt")
    assert said.out.splitlines()[-3:] == [
        "  more.txt: 40 tokens",
        "1 document, 40 tokens",
        *only.chat("Who?", TOKENS).text.splitlines(),
    ]


def test_branches_go_on_alone_from_where_they_parted(talk: Any, told: Path) -> None:
    said = talk(
        "Who?", "/fork other", "Or what?", "/switch main", "And what?", "/switch", "/switch other"
    )
    own = session(told)
    first = own.chat("Who?", TOKENS).text
    fork = own.fork()
    other, second = fork.chat("Or what?", TOKENS).text, own.chat("And what?", TOKENS).text
    assert said.out == (
        f"{first}\nin branch other\n{other}\n"
        "* main: 2 messages\n  other: 4 messages\n"
        f"{second}\n"
        "* main: 4 messages\n  other: 4 messages\n"
        "  main: 4 messages\n* other: 4 messages\n"
    )
    said = talk("Who?", "/fork other", "/undo", "/switch main", "/undo", "/undo")
    assert said.out.count("taken back") == 2
    assert said.err == "error: There is nothing to take back in this branch.\n"


def test_a_saved_conversation_goes_on_in_another_process(
    run: Any, talk: Any, told: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.session"
    first = talk("Who?", "And what?", f"/save {file}")
    assert first.out.endswith(f"saved {file}\n")
    own = session(told)
    for text in ("Who?", "And what?"):
        own.chat(text, TOKENS)
    third = own.chat("Why?", TOKENS)
    said = run("chat", "--session", file, *MODEL, typed="Why?\n/sources\n/documents\n")
    told_by_third = f"{third.text}\n{sources_text(third).lstrip()}\n"
    assert said.out == f"{told_by_third}  owl: {len(TEXT.encode())} tokens\n" + (
        f"1 document, {len(TEXT.encode())} tokens\n"
    )
    # a document that went elsewhere is found in a library
    Library(tmp_path / "books").add(DocumentMemory.load(told))
    Library(tmp_path / "books").rename("owl", "bird")
    told.unlink()
    again = ("chat", "--session", file, *MODEL)
    said = run(*again, typed="Why?\n")
    assert said.code == 2
    assert "needs the document 'owl', which is no longer at" in said.err
    assert run(*again, "--library", tmp_path / "books", typed="Why?\n").out == third.text + "\n"


def test_a_saved_session_keeps_its_own_settings(run: Any, talk: Any, tmp_path: Path) -> None:
    talk("Who?", f"/save {tmp_path}/s")
    for words in (
        ("--system", "Be brief."),
        ("--search", "exact"),
        ("--top-k", "3"),
        ("--window-prefix", "bos"),
    ):
        said = run("chat", "--session", tmp_path / "s", *words)
        assert said.code == 2
        assert f"A saved session has its own settings. Leave out {words[0]}." in said.err
    said = run("chat", "--session", tmp_path / "nothing")
    assert said.code == 2
    assert f"There is no session {tmp_path}/nothing. In a chat, /save writes one." in said.err
    said = run("chat", "--session", tmp_path / "owl.safetensors")
    assert said.code == 2
    assert "not a longfocus session" in said.err


def test_exit_ends_and_so_does_the_end_of_the_input(talk: Any) -> None:
    assert talk("/exit", "/bogus") == (0, "", "")
    assert talk("/documents").code == 0


WRONG = {
    "/bogus": "There is no /bogus. Known: /read, /forget, /documents, ",
    "/": "There is no /. Known: /read, ",
    "/sources": "There is no answer yet. Ask something first.",
    "/html page.html": "There is no answer yet. Ask something first.",
    "/undo": "There is nothing to take back in this branch.",
    "/read": "That needs one more word: /read FILE.",
    "/read /nowhere/text": "/nowhere/text cannot be read: No such file or directory.",
    "/forget": "That needs one more word: /forget NAME.",
    "/forget bird": "This session has no document 'bird'. It has: 'owl'.",
    "/fork": "That needs one more word: /fork NAME.",
    "/fork main": "There is a branch 'main' already. /switch main goes there.",
    "/switch other": "There is no branch 'other'. Known: main.",
    "/save": "That needs one more word: /save FILE.",
    "/save /nowhere/s": "/nowhere/s cannot be written: there is no such folder. Make it first.",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_goes_wrong_is_told_and_the_conversation_goes_on(
    line: str, talk: Any, told: Path
) -> None:
    said = talk(line, "Who?")
    assert said.code == 0
    assert said.err.startswith(f"error: {WRONG[line]}")
    assert len(said.err.splitlines()) == 1
    assert said.out == session(told).chat("Who?", TOKENS).text + "\n"


def test_a_page_that_cannot_be_written_ends_nothing(talk: Any, told: Path, tmp_path: Path) -> None:
    said = talk("Who?", "/html /nowhere/page.html", f"/html {tmp_path}", "And what?")
    own = session(told)
    texts = [own.chat(text, TOKENS).text for text in ("Who?", "And what?")]
    assert (said.code, said.out) == (0, "".join(f"{text}\n" for text in texts))
    assert len(said.err.splitlines()) == 2
    assert said.err.startswith("error: [Errno 2] No such file or directory")


@pytest.mark.parametrize("typed", [b"Who?\n\xe9\n/documents\n", b"\xff\xfe\n"])
def test_bytes_that_are_no_text_are_told_and_end_nothing(typed: bytes, run: Any) -> None:
    said = run("chat", *MODEL, typed=typed)
    assert said.code == 0
    assert said.err == "error: what was typed is not utf-8 text.\n"


def test_bytes_that_the_locale_lets_through_are_refused_by_the_session(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = io.TextIOWrapper
    monkeypatch.setattr(
        io, "TextIOWrapper", lambda data, encoding: real(data, encoding, "surrogateescape")
    )
    said = run("chat", *MODEL, typed=b"caf\xe9\nWho?\n")
    assert (said.code, len(said.out.splitlines())) == (0, 1)
    assert "half of a surrogate pair" in said.err


def test_ctrl_c_stops_an_answer_and_leaves_the_conversation_as_it_was(
    talk: Any, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Session.chat

    def stopped(self: Session, said: str, *given: Any, **named: Any) -> Any:
        if said == "And what?":
            raise KeyboardInterrupt
        return chat(self, said, *given, **named)

    monkeypatch.setattr(Session, "chat", stopped)
    said = talk("Who?", "And what?", "Why?", "/undo", "/undo", "/undo")
    monkeypatch.undo()
    own = session(told)
    first, third = own.chat("Who?", TOKENS).text, own.chat("Why?", TOKENS).text
    assert said.out.startswith(f"{first}\n\n(stopped; the conversation is as it was)\n{third}\n")
    assert said.out.count("taken back") == 2


class Terminal(io.StringIO):
    """Somebody who types Ctrl-C first."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.was_interrupted = False

    def isatty(self) -> bool:
        return True

    def readline(self, *given: Any) -> str:
        if not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt
        return super().readline(*given)


def test_a_terminal_gets_a_greeting_and_prompts_and_ctrl_c_does_not_end_it(
    told: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longfocus.cli import chat as command

    monkeypatch.setattr(command, "_session", lambda arguments: session(told))
    monkeypatch.setattr(sys, "stdin", Terminal("/fork other\n/switch main\n"))
    command.run(command.Arguments(model="any"))
    assert capsys.readouterr().out.splitlines() == [
        f"{len(TEXT.encode())} tokens of documents in memory. /help for what you can say, Ctrl-D to end.",
        "> ",
        "(Ctrl-D ends)",
        "> in branch other",
        "other > * main: 0 messages",
        "  other: 0 messages",
        "> ",
    ]


def test_a_path_may_begin_with_the_home_folder(
    talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("text")
    assert (
        talk("/read ~/text.txt", "/save ~/s").out
        == f"read text.txt: 4 tokens\nsaved {tmp_path}/s\n"
    )
    assert (tmp_path / "s").is_file()


@pytest.mark.parametrize(
    ("words", "told_error"),
    [
        (("--temperature", "-1"), "--temperature must be at least 0. Got -1.0."),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1. Got 0."),
        (("--library", "/nowhere"), "There is no library /nowhere."),
        (("--session", "/nowhere"), "There is no session /nowhere."),
        (("--model", "./nowhere"), "There is no folder ./nowhere."),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    words: tuple[str, ...], told_error: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longfocus, "from_pretrained", None)
    said = run("chat", *words)
    assert (said.code, said.out) == (2, "")
    assert told_error in said.err
