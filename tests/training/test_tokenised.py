"""The corpus on disk: made once, whole or not at all, found again while nothing that decides its tokens changed."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from texts import CHAT, FORMS, TEXTS, as_lines, as_text, ids, tokenizer, write_files

from longfocus.errors import LongFocusError
from longfocus.training import token_file, tokenised
from longfocus.training.sources import Source
from longfocus.training.tokenised import Corpus, prepare
from longfocus.training.tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("quiet_datasets")


class Reports:
    """What a progress callback was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.told.append((what, done, total))


def folders(cache: Path) -> list[str]:
    """What lies in a cache, locks aside."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def tokens_of(corpus: Corpus) -> list[list[int]]:
    return [corpus[number].tokens.tolist() for number in range(len(corpus))]


@pytest.mark.parametrize("form", FORMS)
def test_an_unchanged_source_is_tokenised_once(form: Any, tmp_path: Path) -> None:
    source, reports = form(tmp_path / "given"), Reports()
    first = prepare([source], tokenizer(), tmp_path / "cache", report=reports)
    what, done, total = reports.told[-1]
    assert (what, done) == ("tokenising given", total)
    assert reports.told[0] == (what, 0, total)
    reports.told.clear()
    again = prepare([source], tokenizer(), tmp_path / "cache", report=reports)
    assert reports.told == []
    assert len(folders(tmp_path / "cache")) == 1
    assert tokens_of(again) == tokens_of(first)
    about = again.parts[0].about
    assert (about["documents"], about["tokens"]) == (len(TEXTS), again.tokens)


def test_whatever_decides_the_tokens_gives_another_folder(tmp_path: Path) -> None:
    source, cache = as_text(tmp_path / "given"), tmp_path / "cache"
    text = tmp_path / "given" / "0.txt"

    def is_new(given: Source = source, made: Any = None, **options: Any) -> bool:
        before = folders(cache) if cache.exists() else []
        prepare([given], made or tokenizer(), cache, **options)
        return folders(cache) != before

    assert is_new()
    assert not is_new(Source(source.path, name="other", weight=2.0, min_tokens=4))
    assert is_new(append_eos=False)
    assert is_new(made=tokenizer(CHAT))
    assert is_new(made=train_tokenizer(iter(TEXTS), 280))
    assert is_new(Source(source.path, kind="code"))
    assert is_new(Source(source.path, pattern="[12].txt"))
    os.utime(text, ns=(5, 5))
    assert is_new()
    text.write_text(text.read_text() + "more")
    os.utime(text, ns=(5, 5))
    assert is_new()
    text.rename(text.with_name("9.txt"))
    assert is_new()
    assert not is_new()
    moved = tmp_path / "moved" / "given"
    moved.parent.mkdir()
    text.parent.rename(moved)
    assert not is_new(Source(str(moved)))


def test_a_tokenizer_in_use_keeps_its_fingerprint(tmp_path: Path) -> None:
    made, source = train_tokenizer(iter(TEXTS), 280), as_text(tmp_path / "given")
    prepare([source], made, tmp_path / "cache")
    made(TEXTS, padding=True, truncation=True, max_length=4)
    prepare([source], made, tmp_path / "cache")
    made.save_pretrained(tmp_path / "saved")
    prepare([source], type(made).from_pretrained(tmp_path / "saved"), tmp_path / "cache")
    assert len(folders(tmp_path / "cache")) == 1


@pytest.mark.parametrize("what", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_tokenising_leaves_nothing_half_made(
    what: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = as_lines(tmp_path / "given"), tmp_path / "cache"
    monkeypatch.setattr(token_file, "BATCH_TOKENS", 1)

    def stop(label: str, done: int, total: int) -> None:
        if done:
            assert [name[-5:] for name in folders(cache)] == [".part"]
            raise what

    expected = what if isinstance(what, type) else LongFocusError
    with pytest.raises(expected):
        prepare([source], tokenizer(), cache, report=stop)
    assert folders(cache) == []
    assert tokens_of(prepare([source], tokenizer(), cache)) == [[*ids(text), 0] for text in TEXTS]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    source, cache = as_text(tmp_path / "given"), tmp_path / "cache"
    whole = tokens_of(prepare([source], tokenizer(), cache))
    (name,) = folders(cache)
    (cache / name).rename(cache / f".{name}.part")
    (cache / f".{name}.part" / "tokens.arrow").write_bytes(b"half")
    assert tokens_of(prepare([source], tokenizer(), cache)) == whole
    assert folders(cache) == [name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LongFocusError, match=r"cannot be kept in .*cache: File exists.*choose"):
        prepare([as_text(tmp_path / "given")], tokenizer(), tmp_path / "cache")


def test_a_corpus_holds_the_sources_one_after_the_other_without_short_documents(
    tmp_path: Path,
) -> None:
    one = Source(as_text(tmp_path / "one").path, name="books")
    two = Source(as_lines(tmp_path / "two").path, min_tokens=12)
    corpus = prepare([one, two], tokenizer(), tmp_path / "cache")
    texts = [[*ids(text), 0] for text in TEXTS]
    long = [tokens for tokens in texts if len(tokens) >= 12]
    assert 0 < len(long) < len(texts)
    assert tokens_of(corpus) == texts + long
    names = [corpus[number].source for number in range(len(corpus))]
    assert names == ["books"] * len(texts) + ["two"] * len(long)
    assert [part.lengths.tolist() for part in corpus.parts] == [
        [*map(len, texts)],
        [*map(len, long)],
    ]
    assert corpus.tokens == sum(map(len, texts + long))
    assert corpus[-1].tokens.tolist() == long[-1]
    with pytest.raises(IndexError):
        corpus[len(corpus)]


def test_documents_are_views_of_the_mapped_file_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "BATCH_TOKENS", 50)
    corpus = prepare([as_text(tmp_path / "given")], tokenizer(), tmp_path / "cache")
    for made in (corpus, pickle.loads(pickle.dumps(corpus))):
        assert tokens_of(made) == [[*ids(text), 0] for text in TEXTS]
        assert not made[2].tokens.flags.writeable
        assert not made[2].tokens.flags.owndata
    assert len(pickle.dumps(corpus)) < 2000


def test_datasets_opens_the_file(tmp_path: Path) -> None:
    import datasets

    corpus = prepare([as_text(tmp_path / "given")], tokenizer(), tmp_path / "cache")
    dataset = datasets.Dataset.from_file(str(corpus.parts[0].folder / tokenised.TOKENS_FILE))
    assert list(dataset["tokens"]) == tokens_of(corpus)


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    source, entries = as_text(tmp_path / "given"), len(tokenizer())
    with pytest.raises(LongFocusError, match=rf"has {entries} entries, .* has {entries - 1}"):
        prepare([source], tokenizer(), tmp_path / "cache", entries - 1)
    assert len(prepare([source], tokenizer(), tmp_path / "cache", entries)) == len(TEXTS)


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([], "no source of documents"),
        (
            [Source("a"), Source("x/a")],
            "different names. Got 'a' more than once. Give each path once",
        ),
        ([Source("a", weight=1.0), Source("b")], "Got none for 'b'. Give"),
        ([Source("a", stream=True)], "Got stream=True for a. Use Stream"),
    ],
)
def test_what_makes_no_mixture_is_refused(
    sources: list[Source], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(LongFocusError, match=reason):
        prepare(sources, tokenizer(), tmp_path / "cache")


def test_what_was_left_out_is_said_once_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files: dict[str, str | bytes] = {f"{number}.bin": b"\0" for number in range(9)}
    folder = write_files(tmp_path / "given", {**files, "a.txt": "the owl"})
    with caplog.at_level(logging.WARNING, "longfocus"):
        for _ in range(2):
            corpus = prepare([Source(str(folder))], tokenizer(), tmp_path / "cache")
    assert [record.getMessage().count(".bin") for record in caplog.records] == [5]
    assert corpus.parts[0].about["left_out"] == 9


def test_where_much_was_left_out_the_reasons_are_counted(tmp_path: Path) -> None:
    empty = {f"{number}.txt": "" for number in range(9)}
    folder = write_files(tmp_path / "f", {**empty, "x": b"\0", ".y": "hidden"})
    reason = r"10 left out: .* \(in all 9 no text, 1 not UTF-8 text\)\. .*not read: 1 hidden\."
    with pytest.raises(LongFocusError, match=reason):
        prepare([Source(str(folder))], tokenizer(), tmp_path / "cache")
