"""`longfocus ask`: answers on the standard output, and whatever else is asked for where it is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

import longfocus
from longfocus import DocumentMemory, Library, Session
from longfocus.cli.ask import sources_text
from longfocus.inference.page.of_answer import answer_page
from longfocus.inference.page.render import render_page
from small import TEXT, byte_tokenizer, small_model

QUESTIONS = ["Who?", "What is the 42nd key?"]
TOKENS = 4
SHORT = ("--max-new-tokens", str(TOKENS))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents, two of them in English, one of a folder."""
    folder = tmp_path_factory.mktemp("libraries") / "books"
    texts = tmp_path_factory.mktemp("texts")
    for name in ("one.txt", "two.txt"):
        (texts / name).write_text(f"The text of {name}.\n" * 4)
    made = Library(folder)
    for name, source, language in [
        ("owl", TEXT, "en"),
        ("hibou", TEXT[::-1], "fr"),
        ("texts", texts, "en"),
    ]:
        made.add(document(source, name, language=language))
    return folder


def document(source: Any, name: str, **metadata: str) -> DocumentMemory:
    tokenizer = byte_tokenizer(chat=True)
    return longfocus.read_document(small_model(), tokenizer, source, name, metadata=metadata)


def asking(*documents: DocumentMemory, **settings: Any) -> Session:
    """What the command line must do, with the same model that was never in a folder."""
    return Session(small_model(), byte_tokenizer(chat=True), documents=documents, **settings)


def answers(library: Path, *patterns: str, **settings: Any) -> list[str]:
    made = asking(*Library(library).select(*patterns), **settings)
    return [answer.text for answer in made.ask(QUESTIONS, max_new_tokens=TOKENS)]


def with_sources(made: Session) -> str:
    answer = made.ask(QUESTIONS[0], max_new_tokens=TOKENS)
    return f"{answer.text}\n{sources_text(answer)}\n"


def test_the_answer_is_all_that_is_printed(run: Any, library: Path) -> None:
    said = run("ask", QUESTIONS[0], "--library", library, *SHORT)
    assert said == (0, answers(library)[0] + "\n", "")
    assert run("ask", QUESTIONS[0], *SHORT).out == asking().ask(QUESTIONS[0], TOKENS).text + "\n"


def test_several_questions_are_answered_each_under_its_own(run: Any, library: Path) -> None:
    said = run("ask", *QUESTIONS, "--library", library, *SHORT)
    first, second = answers(library)
    assert said.out == f"# {QUESTIONS[0]}\n{first}\n# {QUESTIONS[1]}\n{second}\n"


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--select", "owl"], ["owl"]),
        (["--select", "owl", "t*"], ["owl", "texts"]),
        (["--metadata", "language=fr"], ["hibou"]),
        (["--select", "?*o*", "--metadata", "language=[f]*"], ["hibou"]),
    ],
)
def test_documents_are_chosen_by_name_pattern_and_metadata(
    words: list[str], chosen: list[str], run: Any, library: Path
) -> None:
    said = run("ask", QUESTIONS[0], "--library", library, "--sources", *SHORT, *words)
    made = asking(*Library(library).select(*chosen))
    assert said == (0, with_sources(made), "")
    assert said.out != with_sources(asking(*Library(library)))


def test_documents_of_files_and_texts_read_now_come_to_those_of_the_library(
    run: Any, library: Path, tmp_path: Path
) -> None:
    (tmp_path / "now.txt").write_text("read now " * 9)
    document("somewhere else " * 5, "else").save(tmp_path / "else.safetensors")
    more = ("--documents", tmp_path / "else.safetensors", "--read", tmp_path / "now.txt")
    said = run("ask", QUESTIONS[0], "--library", library, *more, "--sources", *SHORT)
    made = asking(*Library(library), DocumentMemory.load(tmp_path / "else.safetensors"))
    without = with_sources(made)
    made.read(tmp_path / "now.txt")
    assert said == (0, with_sources(made), "")
    assert said.out != without
    assert len(Library(library)) == 3


def test_settings_are_those_of_a_session(run: Any, library: Path) -> None:
    more = ("--search", "exact", "--top-k", "3", "--system", "Be brief.")
    said = run("ask", QUESTIONS[0], "--library", library, *more, *SHORT)
    expected = answers(library, search="exact", top_k=3, system="Be brief.")[0]
    assert said.out == expected + "\n" != answers(library)[0] + "\n"


def test_sources_are_printed_behind_the_answer_one_place_a_line(run: Any, library: Path) -> None:
    said = run("ask", QUESTIONS[0], "--library", library, "--sources", *SHORT)
    answer = asking(*Library(library)).ask(QUESTIONS[0], TOKENS)
    shown, behind = said.out.split("\n\nsources (share of attention, place, text):\n")
    assert shown == answer.text
    lines = behind.splitlines()
    assert len(lines) == len(answer.sources) > 1
    for line, span in zip(lines, answer.sources, strict=True):
        place = span.document + (f" ({span.part})" if span.part else "")
        assert line.startswith(f"  {span.weight:6.1%}  {place}:{span.line}  ")
        assert line.endswith(" ".join(span.text.split())[-20:])
    assert "texts (texts" in behind
    said = run("ask", QUESTIONS[0], "--sources", *SHORT)
    assert said.out.endswith("\n\nsources: none, there are no documents in memory\n")


def test_what_stands_in_a_document_moves_no_cursor(run: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("\x1b[2J\x1b]0;title\x07 red \x1b[31m" * 3)
    document(tmp_path / "odd.txt", "\x1b[1mbold").save(tmp_path / "odd.safetensors")
    command = ("ask", QUESTIONS[0], "--documents", tmp_path / "odd.safetensors", "--sources")
    said = run(*command, "--max-new-tokens", "1")
    behind = said.out.partition("sources (")[2]
    assert "\ufffd[1mbold:1" in behind
    assert "\x1b" not in behind


def test_answers_and_sources_are_written_as_json(run: Any, library: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    said = run("ask", *QUESTIONS, "--library", library, "--json", file, *SHORT)
    assert "sources" not in said.out
    rows = json.loads(file.read_text())["answers"]
    assert [row["question"] for row in rows] == QUESTIONS
    assert [row["answer"] for row in rows] == answers(library)
    first = asking(*Library(library)).ask(QUESTIONS, TOKENS)[0].sources[0]
    assert rows[0]["sources"][0] == {**vars(first), "weight": pytest.approx(first.weight)}


def test_a_page_is_written_that_shows_question_answer_and_documents(
    run: Any, library: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    question = "<Who> & why?"
    said = run("ask", question, "--library", library, "--html", file, *SHORT)
    assert (said.code, said.err) == (0, "")
    made = asking(*Library(library))
    expected = answer_page(question, made.ask(question, TOKENS), made.tokenizer)
    assert file.read_text() == render_page(expected)
    assert "<Who" not in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "There is no question. Give one in quotes"),
        (["Who?", ""], "There is no question."),
        (["--select", "a", "Who?"], "before options such as --select that take several words"),
        (["Who?", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1. Got 0."),
        (["Who?", "--library", "/nowhere/books"], "There is no library /nowhere/books. Make one: "),
        (["Who?", "--select", "owl"], "choose from a library. Give --library."),
        (["Who?", "--metadata", "a=b"], "choose from a library. Give --library."),
        (["Who?", "--json", "/nowhere/out.json"], "There is no folder /nowhere to write out.json"),
        (["Who?", "--html", "/"], "/ is a folder. Give the name of a file to write."),
        (["Who?", "--json", "."], ". is a folder. Give the name of a file to write."),
        (["Who?", "--html", "/nowhere/out.html"], "There is no folder /nowhere to write out.html"),
        (["Who?", "Why?", "--html", "out.html"], "--html shows one answer. Give one question."),
        (["Who?", "--model", "./nowhere"], "There is no folder ./nowhere."),
        (
            ["Who?", "--documents", "/nowhere/a.safetensors"],
            "a.safetensors cannot be read: No such",
        ),
        (["Who?", "--device", "cuda:99"], "--device cuda:99 cannot be used: "),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    words: list[str], told: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longfocus, "from_pretrained", None)
    said = run("ask", *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--select", "ow"], "has no document 'ow'. Did you mean 'owl'?"),
        (["--metadata", "language=de"], "has no document with --metadata language=de. `longfocus"),
        (["--metadata", "language"], "--metadata takes KEY=VALUE. Got 'language'."),
    ],
)
def test_a_choice_that_chooses_nothing_is_refused(
    words: list[str], told: str, run: Any, library: Path
) -> None:
    said = run("ask", "Who?", "--library", library, *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err


def test_a_library_without_documents_is_refused(run: Any, tmp_path: Path) -> None:
    said = run("ask", "Who?", "--library", tmp_path)
    assert said.code == 2
    assert "has no document yet. `longfocus inspect" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--read", "/nowhere/text"], "/nowhere/text cannot be read: No such file or directory."),
        (["--top-k", "0"], "top_k must be a whole number of at least 1. Got 0."),
        (["--window-prefix", "eos"], "--window-prefix 'eos' is neither bos nor ids of tokens."),
        (["--model", "dictionary"], "dictionary has no tokenizer"),
        (["--model", "code", "--system", "Be brief."], "needs a tokenizer with a chat template"),
    ],
)
def test_what_the_model_cannot_do_is_told(words: list[str], told: str, run: Any) -> None:
    said = run("ask", "Who?", *SHORT, *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err


def test_a_question_of_bytes_that_are_no_text_is_refused(run: Any) -> None:
    # as Python decodes words of the command line
    said = run("ask", b"caf\xe9".decode(errors="surrogateescape"), *SHORT)
    assert said.code == 2
    assert "half of a surrogate pair" in said.err


def test_a_document_that_is_damaged_is_told_by_its_file(run: Any, tmp_path: Path) -> None:
    document(TEXT, "owl").save(tmp_path / "owl.safetensors")
    data = bytearray((tmp_path / "owl.safetensors").read_bytes())
    data[-3000] ^= 1
    (tmp_path / "owl.safetensors").write_bytes(data)
    said = run("ask", "Who?", "--documents", tmp_path / "owl.safetensors", *SHORT)
    assert (said.code, said.out) == (2, "")
    assert f"{tmp_path}/owl.safetensors was altered or damaged: " in said.err


def test_a_document_of_another_model_is_refused(run: Any, library: Path) -> None:
    said = run("ask", "Who?", "--library", library, "--model", "code", *SHORT)
    assert (said.code, said.out) == (2, "")
    assert "was read with another tokenizer. Its token ids mean something else here." in said.err


def test_a_library_read_for_clustered_search_is_asked_with_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 40)
    source, folder = tmp_path / "owl.txt", tmp_path / "library"
    source.write_text(TEXT * 2)
    code, said, _ = run("read", source, "--library", folder, "--search", "clustered")
    assert code == 0
    (kept,) = Library(folder).select()
    assert kept.description.clusters
    again = run("read", source, "--library", folder, "--search", "clustered")[1]
    assert "unchanged" in again
    dense = run("ask", QUESTIONS[0], "--library", folder, *SHORT)
    code, said, told = run(
        "ask",
        QUESTIONS[0],
        "--library",
        folder,
        "--search",
        "clustered",
        "--memory-gib",
        "0",
        *SHORT,
    )
    assert (code, said) == dense[:2]
    assert told.startswith("layer 1: kept 100.00% of the attention on the memory")
    # the same source in the order of its text is another document
    run("read", source, "--library", folder, "--search", "dense")
    (kept,) = Library(folder).select()
    assert not kept.description.clusters
