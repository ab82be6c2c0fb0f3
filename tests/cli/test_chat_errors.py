"""Nothing that goes wrong ends `longfocus chat`, or changes its conversation."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from talking_to import MODEL, TOKENS, session

import longfocus
from longfocus import Session
from small import TEXT

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
    assert said.err.startswith(
        "error: /nowhere/page.html cannot be written: there is no such folder."
    )


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
