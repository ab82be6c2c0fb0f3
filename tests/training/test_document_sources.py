"""Where documents come from: every kind gives the same documents, and what cannot be used is named with the reason."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import CHAT, FORMS, MARKED_CHAT, TEXTS, ids, tokenizer, write_files, write_lines

from longfocus.errors import LongFocusError
from longfocus.inference import source as pieces_of_texts
from longfocus.training.documents import Document
from longfocus.training.sources import Source, kind_of
from longfocus.training.stream import Stream
from longfocus.training.tokenised import prepare

pytestmark = pytest.mark.usefixtures("quiet_datasets")


def documents_of(source: Source, cache: Path, **options: Any) -> list[Document]:
    corpus = prepare([source], options.pop("tokenizer", tokenizer()), cache, **options)
    return [corpus[number] for number in range(len(corpus))]


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_gives_the_same_documents(
    form: Callable[[Path], Source], tmp_path: Path
) -> None:
    source = form(tmp_path / "given")
    found = documents_of(source, tmp_path / "cache")
    assert [document.tokens.tolist() for document in found] == [[*ids(text), 0] for text in TEXTS]
    for tokens, mask, name in found:
        assert mask.tolist() == [0] + [1] * (len(tokens) - 1)
        assert name == "given"
    streamed = Stream([source], tokenizer(), epochs=1, buffer_documents=1)
    for document, same in zip(streamed, found, strict=True):
        assert [part.tolist() for part in document[:2]] == [part.tolist() for part in same[:2]]


def test_files_of_a_folder_are_documents_in_path_order_and_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "b/c.md": "bc",
        "a.txt": "a",
        "b.txt": "b",
        "empty": "",
        "b/d/e": "e",
        "bom": b"\xef\xbb\xbfz",
    }
    hidden = {".git/config": "x", "__pycache__/y": "x", "b/.x": "x"}
    folder = write_files(tmp_path / "f", {**files, **hidden, "x.bin": b"\0", "y.bin": b"\xff\xfe"})
    with caplog.at_level(logging.WARNING, "longfocus"):
        corpus = prepare([Source(str(folder))], tokenizer(), tmp_path / "cache")
    texts = [
        tokenizer().decode(document.tokens[:-1])
        for document in map(corpus.__getitem__, range(len(corpus)))
    ]
    assert texts == ["a", "b", "bc", "e", "z"]
    assert corpus.parts[0].about["left_out"] == 3
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 left out" in message
    assert all(name in message for name in ("x.bin (not UTF-8", "y.bin", "empty (no text)"))
    assert (
        len(prepare([Source(str(folder), pattern="*.txt")], tokenizer(), tmp_path / "cache")) == 2
    )


def test_a_code_folder_is_one_document_with_the_path_before_each_file(tmp_path: Path) -> None:
    files = {
        "pack/b.py": "b = 1",
        "pack/a/z.py": "z = 1\n",
        "pack/__init__.py": "",
        "pack/x": b"\0",
    }
    folder = write_files(tmp_path, files) / "pack"
    (document,) = documents_of(Source(str(folder)), tmp_path / "cache")
    expected = "# pack/__init__.py\n# pack/a/z.py\nz = 1\n# pack/b.py\nb = 1\n"
    assert tokenizer().decode(document.tokens[:-1]) == expected


def test_a_folder_of_code_folders_has_one_document_each(tmp_path: Path) -> None:
    files = {"two/b.py": "b\n", "one/c/d.py": "d\n", "one/a.py": "a\n", "two-x/e.c": "e\n"}
    folder = write_files(tmp_path / "shelf", files)
    found = documents_of(Source(str(folder)), tmp_path / "cache")
    assert [tokenizer().decode(document.tokens[:-1]) for document in found] == [
        "# one/a.py\na\n# one/c/d.py\nd\n",
        "# two-x/e.c\ne\n",
        "# two/b.py\nb\n",
    ]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.txt", "b.py"], "text"),
        (["a.txt", "b.py", "c.py"], "code"),
        (["README.md", "a.jsonl"], "jsonl"),
        (["README.md", "data/a.parquet"], "parquet"),
        (["dataset_dict.json"], "dataset"),
        (["state.json", "dataset_info.json", "x.arrow"], "dataset"),
        ([], "text"),
    ],
)
def test_the_kind_of_a_folder_is_found_out(names: list[str], kind: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path, dict.fromkeys(names, "x"))
    assert kind_of(Source(str(folder))) == kind
    assert kind_of(Source(str(folder), kind="text")) == "text"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.py", "code"),
        ("a", "text"),
    ],
)
def test_the_kind_of_a_file_is_found_out(name: str, kind: str, tmp_path: Path) -> None:
    write_files(tmp_path, {name: "x"})
    assert kind_of(Source(tmp_path / name)) == kind  # type: ignore[arg-type]


def test_a_long_text_is_tokenised_in_the_pieces_that_a_session_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_of_texts, "PIECE", 30)
    write_files(tmp_path, {"a.txt": TEXTS[2]})
    (document,) = documents_of(Source(str(tmp_path / "a.txt")), tmp_path / "cache")
    parts = [part.input_ids.numpy() for part in pieces_of_texts.tokenize(TEXTS[2], tokenizer())]
    assert len(parts) > 1
    assert document.tokens.tolist() == [*np.concatenate(parts), 0]


def test_end_and_beginning_of_text_are_as_asked(tmp_path: Path) -> None:
    source = Source(str(write_files(tmp_path / "t", {"a": "key"})))
    cache, words = tmp_path / "cache", ids("key")
    made = tokenizer()
    (bare,) = documents_of(source, cache, append_eos=False)
    assert bare.tokens.tolist() == words
    with pytest.raises(LongFocusError, match="no beginning-of-text token"):
        documents_of(source, cache, prepend_bos=True)
    from copy import deepcopy

    with_bos = deepcopy(made)
    with_bos.bos_token = "!"
    (both,) = documents_of(source, cache, prepend_bos=True, tokenizer=with_bos)
    assert both.tokens.tolist() == [with_bos.bos_token_id, *words, 0]


MESSAGES = [
    {"role": "system", "content": "keys"},
    {"role": "user", "content": "which key?"},
    {"role": "assistant", "content": " the owl"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "nine\n"},
]
LEARNT = " the owl<|end|>\nnine\n<|end|>\n"


@pytest.mark.parametrize("template", [CHAT, MARKED_CHAT])
def test_answers_of_a_chat_are_learnt_and_nothing_else(template: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"messages": MESSAGES}, {"messages": MESSAGES[:2]}])
    made = tokenizer(template)
    (document,) = documents_of(Source(str(path)), tmp_path / "cache", tokenizer=made)
    text = made.apply_chat_template(MESSAGES, tokenize=False)
    assert made.decode(document.tokens) == text
    assert made.decode(document.tokens[document.loss_mask == 1]) == LEARNT


FORGETFUL = (
    "{% for message in messages %}{% if loop.last or message['role'] == 'user' %}"
    "{{ message['content'] }}\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (None, MESSAGES, "line 1 is a chat, but the tokenizer has no chat template"),
        (FORGETFUL, MESSAGES, "line 1: .* answer 2, because the chat template renders"),
        (CHAT, [{"content": "x"}], "line 1 is no chat: message 0 has no role"),
        (CHAT, [], "line 1 is no chat: it has no messages"),
        ("{{ raise_exception('Only users!') }}", MESSAGES, r"line 1: .*\(Only users!\)"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_refused(
    template: str | None, messages: list[dict[str, str]], reason: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"messages": messages}])
    with pytest.raises(LongFocusError, match=reason):
        documents_of(Source(str(path)), tmp_path / "cache", tokenizer=tokenizer(template))


LINES_REFUSED = [
    (b'{"text": "a"}\n\n{"text": \n', {}, r"a.jsonl, line 3 is not JSON: Expecting value"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', {}, r"a.jsonl, line 2 is not JSON: 'utf-8'"),
    (b'["a"]\n', {}, "line 1 must be an object. Got list"),
    (b'{"body": "a", "id": 1}\n', {}, "line 1 has no field 'text'. It has 'body', 'id'"),
    (
        b'{"text": "a"}\n',
        {"text_field": "body"},
        "has no field 'body'. It has 'text'.*--text-field",
    ),
    (b'{"text": 5}\n', {}, "field 'text' must hold a text or a list of chat messages. Got int"),
    (b'{"text": ["a"]}\n', {}, "Got list"),
    (b"", {}, "There are no documents"),
    (b'{"text": null}\n{"text": ""}\n', {}, r"no documents in .* 2 left out: .*line 1 \(no text\)"),
    (b'{"text": "\\ud83e"}\n', {}, "no documents .* 1 left out"),
    (
        b'{"text": "a"}\n{"text": "the owl"}\n',
        {"min_tokens": 9},
        r"All 2 documents .*min_tokens=9; .* has \d",
    ),
]


@pytest.mark.parametrize(("data", "changed", "reason"), LINES_REFUSED)
def test_lines_that_cannot_be_used_are_named(
    data: bytes, changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_files(tmp_path, {"a.jsonl": data})
    for _ in range(2):
        with pytest.raises(LongFocusError, match=reason):
            documents_of(Source(str(tmp_path / "a.jsonl"), **changed), tmp_path / "cache")


@pytest.mark.parametrize("form", FORMS[2:])
def test_a_missing_field_of_a_table_is_named_with_those_that_exist(
    form: Callable[[Path], Source], tmp_path: Path
) -> None:
    given = form(tmp_path / "given")
    source = Source(given.path, kind=given.kind, split=given.split, text_field="body")
    for reading in (
        lambda: documents_of(source, tmp_path / "cache"),
        lambda: next(iter(Stream([source], tokenizer()))),
    ):
        with pytest.raises(LongFocusError, match=r"has no field 'body'. It has .*'text'"):
            reading()


@pytest.mark.parametrize(
    ("files", "changed", "reason"),
    [
        ({}, {"path": "nowhere"}, "no file or folder .*kind 'dataset'.*--kind, or kind="),
        ({}, {}, r"no documents in .*no file is there\. Check"),
        ({"a.txt": "x"}, {"pattern": "*.md"}, "fits pattern='.*md' is there.* 1 of other names"),
        ({".a": "x", "b/.c/d": "x"}, {}, "no file is there. Files that are not read: 2 hidden"),
        ({"a.txt": "x"}, {"kind": "jsonl"}, "that ends in .jsonl or .ndjson"),
        ({"a.jsonl": "x", "b.parquet": "x"}, {}, "Give it, jsonl or parquet .--kind"),
        ({"b.parquet": "x"}, {}, "b.parquet is no parquet file"),
        ({"a.bin": b"\0"}, {}, r"no documents in .* 1 left out: .*a.bin \(not UTF-8 text\)"),
        ({"a.txt": "x"}, {"kind": "book"}, "must be one of text, code, .*Got 'book'"),
        ({"a.txt": "x"}, {"weight": 0.0}, "weight .* above 0. Got 0.0"),
        ({"a.txt": "x"}, {"min_tokens": 0}, "min_tokens .* at least 1. Got 0"),
        ({"dataset_dict.json": "{}"}, {"kind": "dataset"}, "given cannot be loaded: .splits"),
        ({}, {"path": "nowhere/nothing", "kind": "dataset"}, "nowhere/nothing cannot be loaded"),
    ],
)
def test_what_is_no_source_is_refused_with_the_reason(
    files: dict[str, str | bytes], changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "given", files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(LongFocusError, match=reason):
        documents_of(Source(**{"path": str(folder), **changed}), tmp_path / "cache")


def test_a_missing_split_is_named_with_those_that_exist(tmp_path: Path) -> None:
    for form in FORMS[4:]:
        given = form(tmp_path / form.__name__)
        source = Source(given.path, kind=given.kind, split="validation")
        with pytest.raises(LongFocusError, match=r"'?validation'?.*'?test'?|'?train'?"):
            documents_of(source, tmp_path / "cache")


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FORMS[3](tmp_path / "given")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LongFocusError, match=rf"needs the package {package}.*longfocus\[train\]"):
        documents_of(source, tmp_path / "cache")


def test_a_source_is_saved_as_json() -> None:
    from dataclasses import asdict

    source = Source(Path("a") / "b", weight=0.25, min_tokens=4096)  # type: ignore[arg-type]
    assert Source(**json.loads(json.dumps(asdict(source)))) == source
    assert source.label == "b"
