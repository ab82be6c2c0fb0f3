"""`longfocus chat`, talked to from a script: every command, and nothing that goes wrong ends it."""

import os
from pathlib import Path
from typing import Any

import pytest
from talking_to import MODEL, TOKENS, session

from longfocus import DocumentMemory, Library, Session, read_document
from longfocus.cli import chat
from longfocus.cli.ask import sources_text
from longfocus.cli.chat import Chat
from longfocus.inference.page.of_answer import answer_page
from longfocus.inference.page.render import render_page
from small import TEXT, byte_tokenizer, small_model


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
    commands = Chat(session(told), None).commands  # type: ignore[arg-type]
    assert len(said.out.splitlines()) == len(commands) == 11
    for line, (command, (_, meaning)) in zip(said.out.splitlines(), commands.items(), strict=True):
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


def test_names_move_no_cursor_and_all_of_one_name_are_forgotten(
    run: Any, told: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.safetensors"
    read_document(small_model(), byte_tokenizer(), "more text", "a\x1b[2Jb").save(odd)
    typed = "/documents\n/forget a\x1b[2Jb\n/forget owl\n/documents\n"
    said = run("chat", "--documents", told, odd, odd, *MODEL, typed=typed)
    tokens = len(TEXT.encode())
    assert said.out.splitlines() == [
        f"  owl: {tokens} tokens",
        *["  a\ufffd[2Jb: 9 tokens"] * 2,
        f"3 documents, {tokens + 18} tokens",
        "forgot a\ufffd[2Jb, 2 documents of that name",
        "forgot owl",
        "0 documents, 0 tokens",
    ]


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


def test_undo_keeps_the_windows_of_the_last_turns_only(
    talk: Any, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MOST_MARKS", 2)
    said = talk("/help", "Who?", "And what?", "Why?", "/undo", "/fork other", "/undo", "/undo")
    (line,) = [line for line in said.out.splitlines() if line.startswith("  /undo")]
    assert line.endswith("take back the last question and its answer; up to 2 of them")
    assert said.out.count("taken back") == 2
    assert said.err == "error: There is nothing to take back in this branch.\n"


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
    # the last answer may be that of another branch
    said = talk("Who?", "/fork other", "/switch main", "/sources")
    assert said.err == "error: There is no answer yet. Ask something first.\n"


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
    # what else is in it comes to those of the session
    Library(tmp_path / "books").add(own.read("more text", "more"))
    said = run(*again, "--library", tmp_path / "books", typed="/documents\nWhy?\n")
    assert [line.split()[0] for line in said.out.splitlines()[:2]] == ["owl:", "more:"]
    assert said.out.splitlines()[2] == f"2 documents, {len(TEXT.encode()) + 9} tokens"


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
