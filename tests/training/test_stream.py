"""Streamed documents: every one once an epoch, divided without loss; and rows over them or a corpus, resumed."""

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from plain_rows import as_lists
from texts import (
    FORMS,
    TEXTS,
    as_lines,
    as_parquet,
    as_text,
    as_worker,
    ids,
    tokenizer,
    write_files,
)

from longfocus.errors import LongFocusError
from longfocus.training.rows import Document, document_rows
from longfocus.training.sources import Source
from longfocus.training.stream import Stream, open_documents


@pytest.mark.parametrize("kind", ["order", "endless order", "stream"])
def test_rows_resume_bit_for_bit_in_the_middle_of_documents_and_epochs(
    kind: str, tmp_path: Path
) -> None:
    sources = [
        Source(as_text(tmp_path / "one").path, weight=1.0, stream=kind == "stream"),
        Source(as_lines(tmp_path / "two").path, weight=2.0, stream=kind == "stream"),
    ]

    def rows() -> Any:
        epochs = None if kind == "endless order" else 2
        documents = open_documents(sources, tokenizer(), tmp_path / "cache", seed=3, epochs=epochs)
        return document_rows(documents, batch_size=4, length=8, packing=2)

    whole, states = [], []
    uninterrupted = rows()
    for batch in islice(uninterrupted, 40):
        whole.append(batch)
        states.append(json.dumps(uninterrupted.state_dict()))
    lists = as_lists(whole)
    assert len(lists) > 20
    for place in range(0, len(states), 3):
        resumed = rows()
        resumed.load_state_dict(json.loads(states[place]))
        assert as_lists(islice(resumed, len(lists) - place - 1)) == lists[place + 1 :]


def words(document: Document) -> tuple[int, ...]:
    return tuple(document.tokens.tolist())


ALL_WORDS = sorted((*ids(text), 0) for text in TEXTS)


@pytest.mark.usefixtures("quiet_datasets")
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_gives_every_document_once_an_epoch_in_the_order_of_its_seed(
    form: Any, tmp_path: Path
) -> None:
    given_source = form(tmp_path / "given")
    source = Source(
        given_source.path, kind=given_source.kind, split=given_source.split, stream=True
    )
    stream = Stream([source], tokenizer(), 1, epochs=3, buffer_documents=3)
    found = [words(document) for document in stream]
    assert found == [words(document) for document in stream]
    epochs = [found[start : start + len(TEXTS)] for start in range(0, len(found), len(TEXTS))]
    assert [sorted(epoch) for epoch in epochs] == [ALL_WORDS] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    for workers in (0, 2):
        shares = [
            as_worker(
                lambda rank=rank: [*map(words, Stream([source], tokenizer(), 1, 1, rank, 2))],
                worker,
                workers,
            )
            for rank in range(2)
            for worker in range(max(workers, 1))
        ]
        assert sorted(each for share in shares for each in share) == ALL_WORDS


def test_streamed_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    one = Source(as_text(tmp_path / "one").path, weight=3.0, stream=True)
    two = Source(as_lines(tmp_path / "two").path, weight=1.0, stream=True, min_tokens=12)
    tokens = Counter[str]()
    for document in islice(Stream([one, two], tokenizer()), 200):
        tokens[document.source] += len(document.tokens)
        assert document.source == "one" or len(document.tokens) >= 12
    longest = max(map(len, ALL_WORDS))
    assert math.isclose(tokens["one"] / 3, tokens["two"], abs_tol=longest)


def test_a_stream_without_documents_is_refused_not_endless(tmp_path: Path) -> None:
    source = Source(str(write_files(tmp_path / "x", {"a": "the", "b": b"\0"})), min_tokens=9)
    with pytest.raises(LongFocusError, match=r"no documents in .* 2 left out: .*min_tokens is 9"):
        next(iter(Stream([source], tokenizer())))
    # a share may have none of a small source
    alone = Source(str(write_files(tmp_path / "y", {"a": "the"})))
    assert [len(list(Stream([alone], tokenizer(), 0, 1, rank, 2))) for rank in range(2)] == [1, 0]


def test_what_is_no_stream_is_refused(tmp_path: Path) -> None:
    one, two = as_text(tmp_path / "one"), as_parquet(tmp_path / "two")
    with pytest.raises(LongFocusError, match=r"no known sizes to mix them by. Got no weights"):
        Stream([one, two], tokenizer())
    with pytest.raises(LongFocusError, match=r"buffer_documents must be at least 1. Got 0"):
        Stream([one], tokenizer(), buffer_documents=0)
    streamed = Source(one.path, stream=True)
    with pytest.raises(
        LongFocusError, match=r"all sources are streamed or none. Got stream=True for 'one'"
    ):
        open_documents([streamed, two], tokenizer(), tmp_path / "cache")
