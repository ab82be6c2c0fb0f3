"""What can be read and how it is cut, and what is refused with a reason."""

import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import longfocus
from longfocus import LongFocusError
from longfocus.inference import source
from small import TEXT, WINDOW, byte_tokenizer, ids_of, session, small_model


def owl(tmp_path: Path) -> Path:
    file = tmp_path / "owl.txt"
    file.write_bytes(TEXT.encode())
    return file


@pytest.mark.parametrize("piece", [5, 40, 1000])
@pytest.mark.parametrize("kind", ["text", "file", "texts"])
def test_every_token_knows_its_characters_and_its_line(
    kind: str, piece: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(source, "PIECE", piece)
    given: Any = {"text": TEXT, "file": owl(tmp_path), "texts": [TEXT[:31], TEXT[31:]]}[kind]
    document = session().read(given)
    place = 0
    for token in range(document.tokens):
        start, end = document.span(token)
        (character,) = TEXT[start:end]
        assert start == place
        assert document.line(token) == 1 + TEXT[:start].count("\n")
        # a character of several bytes has several tokens
        is_last = token + 1 == document.tokens or document.span(token + 1)[0] > start
        assert bytes_up_to(token) >= len(TEXT[:start].encode()) + 1
        place += is_last
        if is_last:
            assert bytes_up_to(token) == len((TEXT[:start] + character).encode())
    assert place == len(TEXT)


def bytes_up_to(token: int) -> int:
    """The tokenizer has one token per byte."""
    return token + 1


@pytest.mark.parametrize("piece", [1, 5, 40, 1000])
def test_pieces_are_the_same_characters_cut_behind_line_ends_where_there_are_any(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PIECE", piece)
    tokens = list(source.tokenize(TEXT, byte_tokenizer()))
    assert "".join(found.text for found in tokens) == TEXT
    assert all(0 < len(found.text) <= piece for found in tokens)
    for found, following in pairwise(tokens):
        line_end = (found.text + following.text).find("\n", 0, piece)
        assert found.text.endswith("\n") or line_end < 0


def test_a_source_is_tokenized_only_as_far_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(TEXT)
            yield TEXT

    monkeypatch.setattr(source, "PIECE", 100)
    tokens = source.tokenize(endless(), byte_tokenizer())
    next(tokens)
    assert len(taken) == math.ceil(101 / len(TEXT))


def test_a_text_that_names_a_file_is_read_as_text_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = owl(tmp_path)
    with caplog.at_level(logging.WARNING, "longfocus"):
        document = session().read(str(file))
    assert document.text == str(file)
    (record,) = caplog.records
    assert "Path(" in record.getMessage()
    assert str(file) in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "longfocus"):
        session().read(file)
        session().read(str(file) + "?")
        session().read(str(tmp_path))
        session().read("x" * 9999)
    assert caplog.records == []


def test_a_document_is_named_after_its_file_or_its_first_words(tmp_path: Path) -> None:
    reading = session()
    assert reading.read(owl(tmp_path)).name == "owl.txt"
    assert reading.read("  The owl\nsaw nine  keys.").name == "The owl saw nine keys."
    assert reading.read(TEXT, name="tale").name == "tale"
    assert reading.read([TEXT]).name == reading.read(ids_of(TEXT)).name == "text"


def test_line_ends_are_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "ends").write_bytes(b"a\r\nb\rc\n")
    assert session().read(tmp_path / "ends").text == "a\r\nb\rc\n"


UNREADABLE = {
    "an empty text": ("", "nothing to read: the text is empty"),
    "no texts": (iter([]), "nothing to read"),
    "empty texts": (["", ""], "nothing to read: the text is empty"),
    "white space": (" \n", "nothing to read: the text holds only white space"),
    "no token ids": ([], "nothing to read"),
    "no token ids in a tensor": (torch.empty(0, dtype=torch.long), "nothing to read"),
    "token ids in a batch": (torch.zeros(2, 3, dtype=torch.long), r"integers \[tokens\].*\(2, 3\)"),
    "numbers that are no ids": (torch.zeros(3), r"integers \[tokens\]. Got torch.float32"),
    "an id beyond the vocabulary": (torch.tensor([1, 259]), r"0\.\.258.*Got 1\.\.259"),
    "an id below zero": ([4, -2], r"0\.\.258.*Got -2\.\.4"),
    "bytes": (b"text", "bytes cannot be read as text"),
    "things": ([1.5, 2.5], "must give str. Got float"),
    "text and then a thing": (["text", None], "must give str. Got NoneType"),
    "a number": (5, "int"),
    "nothing": (None, "NoneType"),
    "half a surrogate pair": ("owl \ud83e", "surrogate"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_with_the_reason_every_time(name: str) -> None:
    given, reason = UNREADABLE[name]
    reading = session()
    for _ in range(2):
        with pytest.raises(LongFocusError, match=reason):
            reading.read(given)
    assert reading.documents == []
    reading.read("something else")
    assert len(reading.documents) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t\r\n", "holds only white space"),
        (b"text\x00\xff\xfe\x81", "looks like a binary file"),
        ("Schlüssel".encode("latin1"), "is not UTF-8 text .* at byte 4"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path, reading = tmp_path / "given", session()
    if content is not None:
        path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(LongFocusError, match=reason) as error:
            reading.read(path)
        assert str(path) in str(error.value)
    assert reading.documents == []


def test_a_text_needs_a_tokenizer_and_token_ids_do_not() -> None:
    reading = longfocus.Session(small_model())
    with pytest.raises(LongFocusError, match="only be read with a tokenizer"):
        reading.read(TEXT)
    assert reading.read(ids_of(TEXT)).tokens == len(ids_of(TEXT))


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("eos", "'bos' or token ids. Got 'eos'"),
        (range(WINDOW), f"{WINDOW} tokens fills the window of {WINDOW}"),
    ],
)
def test_a_prefix_that_cannot_begin_a_window_is_refused(prefix: Any, reason: str) -> None:
    with pytest.raises(LongFocusError, match=reason):
        longfocus.Session(small_model(), byte_tokenizer(), window_prefix=prefix).read(TEXT)
    with pytest.raises(LongFocusError, match="needs a tokenizer"):
        longfocus.Session(small_model(), window_prefix="bos")


def test_a_model_that_cannot_read_is_refused() -> None:
    for model in (small_model(positions="true"), small_model(())):
        with pytest.raises(LongFocusError, match="Reading needs a model with memory layers"):
            longfocus.Session(model, byte_tokenizer()).read(TEXT)
    with pytest.raises(LongFocusError, match="memory"):
        longfocus.read_document(torch.nn.Linear(1, 1), byte_tokenizer(), TEXT)
