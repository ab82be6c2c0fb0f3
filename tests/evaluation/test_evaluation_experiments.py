"""Every experiment at tiny size: who knows everything scores 100%, who remembers nothing what chance gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examining import Blind, Knowing, tiny_dictionary_model

from longfocus.core import dictionary_task as task
from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Cell, number_of_tokens
from longfocus.evaluation.experiments import EXPERIMENTS, experiment, passkey
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.evaluation.needles import is_in
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.source_lines import frequent_words
from longfocus.evaluation.subject import Subject
from longfocus.memory import store
from small import byte_tokenizer, small_model


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text("\n".join(" ".join(rng.choice(words, size=4)) for _ in range(300)))
    return path


def measured(name: str, subject: Any, **settings: Any) -> list[dict[str, Any]]:
    """The rows of an experiment."""
    chosen, results = experiment(name), Results()
    run(chosen, chosen.settings(**settings), subject, results)
    return results.rows


def of(name: str, text_file: Path) -> dict[str, Any]:
    """Tiny settings, by the name of an experiment and what it asks."""
    return {
        "dictionary": {"tokens": ("512",), "seeds": (1, 2), "questions": 50, "whole_answers": 5},
        "passkey landmark": {"tokens": ("512", "1K"), "questions": 2},
        "passkey plain": {
            "tokens": ("512",),
            "text": "plain",
            "keys": 3,
            "questions": 2,
            "file": text_file,
        },
        "passkey hard": {"tokens": ("512",), "text": "hard", "questions": 5, "file": text_file},
        "needle sentence": {
            "tokens": ("512", "1K"),
            "depths": 2,
            "needles": 2,
            "distractors": 3,
            "file": text_file,
        },
        "needle passkey": {
            "tokens": ("512",),
            "depths": 1,
            "wording": "passkey",
            "file": text_file,
        },
    }[name]


NAMES = [
    "dictionary",
    "passkey landmark",
    "passkey plain",
    "passkey hard",
    "needle sentence",
    "needle passkey",
]


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_everything_scores_100_percent(name: str, text_file: Path) -> None:
    rows = measured(name.split()[0], Knowing(byte_tokenizer()), **of(name, text_file))
    assert rows
    for row in rows:
        assert row["accuracy"] == 1
        assert row["accuracy_interval"][1] == 1
        assert row["accuracy_without_memory"] <= 0.1
        assert row["retained_mass"] == pytest.approx(0.995)
        assert row["retained_mass_least"] == 0.9
        assert {"tokens", "seed", "reading_seconds", "answering_seconds"} <= row.keys()


@pytest.mark.parametrize("name", NAMES)
def test_who_remembers_nothing_scores_what_chance_gives(name: str, text_file: Path) -> None:
    for row in measured(name.split()[0], Blind(byte_tokenizer()), **of(name, text_file)):
        assert row["accuracy"] == row["accuracy_without_memory"] <= 0.1


# these measure losses and shares, or choose among labels, in files of their own
ELSEWHERE = {"benefit", "perplexity", "distraction", "layers", "fewshot", "retrieval"}


def test_every_experiment_of_the_list_is_tested() -> None:
    assert {name.split()[0] for name in NAMES} | ELSEWHERE == set(EXPERIMENTS)


def test_whole_answers_are_counted_apart() -> None:
    (row,) = measured("dictionary", Knowing(), tokens=("512",), questions=50, whole_answers=5)
    assert row["whole_answer_accuracy"] == 1
    # 500 answer tokens are few: five memories of two windows were asked
    assert row["questions"] == 50


def test_a_memory_that_holds_enough_records_is_read_once() -> None:
    (row,) = measured("dictionary", Knowing(), tokens=("512",), questions=30, whole_answers=5)
    # of a whole window
    assert row["questions"] == 25


def test_ambiguous_keys_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = task.draw_memory

    def twice(tokens: int, seed: int) -> task.Records:
        records = draw(tokens, seed)
        records.keys[25:] = records.keys[:25]
        return records

    monkeypatch.setattr(task, "draw_memory", twice)
    settings = {"tokens": ("768",), "questions": 75, "whole_answers": 5}
    chosen = experiment("dictionary")
    monkeypatch.setattr("longfocus.evaluation.dictionary.FEWEST_ANSWER_TOKENS", 1)
    found = list(chosen.records(Knowing(), chosen.settings(**settings), {"tokens": 512, "seed": 1}))
    assert all(record["is_ambiguous"] for record in found)
    row = chosen.row(found)
    assert row["ambiguous"] == 1
    assert row["accuracy"] is None


def test_the_pass_key_stands_at_random_places_in_so_many_tokens() -> None:
    subject, cell = Knowing(byte_tokenizer()), {"tokens": 2000, "seed": 1}
    settings = passkey.PasskeySettings(questions=8)
    found = list(passkey.records(subject, settings, cell))
    assert all(2000 <= record["tokens_read"] < 2400 for record in found)
    assert len({record["depth"] for record in found}) == 8
    assert found == list(passkey.records(subject, settings, cell))
    assert found != list(passkey.records(subject, settings, {**cell, "seed": 2}))


@pytest.mark.parametrize(
    ("answer", "number"), [(" 123. Rem", 123), ("0123", 123), ("x", None), ("", None)]
)
def test_the_first_number_is_the_answer(answer: str, number: int | None) -> None:
    assert passkey.first_number(answer) == number


def test_names_are_made_of_frequent_words(text_file: Path, tmp_path: Path) -> None:
    assert 30 <= len(frequent_words(text_file)) <= 60
    assert "self" in frequent_words()
    (tmp_path / "short.txt").write_text("three little words")
    # too few, as in a text without Latin letters
    assert frequent_words(tmp_path / "short.txt") == frequent_words()


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [("48213", True), ("数字是48213。", True), ("148213", False), ("x48213", False)],
)
def test_an_answer_holds_whole_words_where_there_are_spaces(answer: str, is_right: bool) -> None:
    assert is_in("48213", answer) is is_right
    assert is_in("北京", "在北京吃饭")
    assert not is_in("pear", "pearls")


@pytest.mark.parametrize(
    "given", [{"keys": 3}, {"text": "hard", "keys": 3}, {"file": Path(__file__)}]
)
def test_pass_keys_refuse_what_would_have_no_effect(given: dict[str, Any]) -> None:
    with pytest.raises(LongFocusError, match="would have no effect"):
        passkey.PasskeySettings(**given)


def test_a_real_model_reads_and_is_asked(text_file: Path) -> None:
    subject = Subject(small_model(window=128), byte_tokenizer())
    for name in NAMES[1:]:
        for row in measured(name.split()[0], subject, **of(name, text_file)):
            assert 0 <= row["accuracy"] <= 1
            assert row["reading_seconds"] > 0
            assert row["answering_seconds"] > 0
            # two vectors of 12 float32 components in each of 2 KV heads
            assert row["memory_bytes"] > 0
            assert "retained_mass" not in row


def test_a_window_shorter_than_a_line_is_refused(text_file: Path) -> None:
    subject = Subject(small_model(), byte_tokenizer())
    with pytest.raises(LongFocusError, match="does not fit in a window of 16"):
        measured("passkey", subject, **of("passkey hard", text_file))


def test_approximate_search_says_what_it_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "SORTED_FROM", 256)
    cell: Cell = {"tokens": 1024, "seed": 3}
    options = {"clustered": MemoryOptions(search="clustered"), "dense": MemoryOptions()}
    chosen, rows = experiment("dictionary"), {}
    settings = chosen.settings(tokens=("1K",), seeds=(3,), questions=100, whole_answers=2)
    for name, memory in options.items():
        results = Results()
        run(chosen, settings, Subject(tiny_dictionary_model(), None, memory), results)
        (rows[name],) = results.rows
    assert rows["dense"]["accuracy"] < 0.2
    assert 0.9 < rows["clustered"]["retained_mass"] <= 1
    assert rows["clustered"]["retained_mass_least"] <= rows["clustered"]["retained_mass_p10"]
    assert "retained_mass" not in rows["dense"]
    assert rows["dense"].items() >= cell.items()


def test_int8_memory_and_files_beyond_the_budget(tmp_path: Path) -> None:
    settings = {"tokens": ("1K",), "questions": 100, "whole_answers": 2}
    rows = {}
    for dtype in ("bfloat16", "int8"):
        memory = MemoryOptions(memory_dtype=dtype, memory_gib=0.0, spill_folder=tmp_path)
        subject = Subject(tiny_dictionary_model(), None, memory)
        with subject.session() as session:
            document = subject.read(session, torch.zeros(256, dtype=torch.int64))
            assert document.description.dtype == dtype
            assert session.rooms.in_ram == 0 < session.rooms.on_disk
        (rows[dtype],) = measured("dictionary", subject, **settings)
    # int8 pairs have a float32 scale for each key and each value
    assert rows["bfloat16"]["memory_bytes"] == 1024 * 2 * 8 * 2
    assert rows["int8"]["memory_bytes"] == 1024 * 2 * (8 + 4)


def test_anonymous_memory_is_told_where_the_system_tells_it() -> None:
    (row,) = measured("dictionary", Knowing(), tokens=("512",), questions=25, whole_answers=1)
    if Path("/proc/self/status").exists():
        assert row["peak_anonymous_bytes"] > 2**20
    else:
        assert "peak_anonymous_bytes" not in row


@pytest.mark.parametrize(("text", "number"), [("16K", 16_384), ("1m", 2**20), ("77", 77)])
def test_numbers_of_tokens_are_understood(text: str, number: int) -> None:
    assert number_of_tokens(text) == number


@pytest.mark.parametrize("text", ["", "K", "0", "-1K", "1G", "1.5K", "²"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(LongFocusError, match="is not a number of tokens"):
        number_of_tokens(text)
