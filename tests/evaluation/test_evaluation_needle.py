"""Needles: they stand where they should, are asked for as the user words it, and an answer is judged in whole words."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examining import Blind, Knowing

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiments import needle
from longfocus.evaluation.needles import is_in
from small import byte_tokenizer


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(rng.choice(words, size=4)) for _ in range(300)))
    return path


def found(subject: Any, cell: dict[str, Any], **settings: Any) -> list[Any]:
    return list(needle.records(subject, needle.NeedleSettings(**settings), cell))


class Listening(Knowing):
    """Keeps what is read."""

    text = ""

    def read(self, session: Any, source: Any, name: str | None = None) -> Any:
        self.text += source
        return super().read(session, source, name)


@pytest.mark.parametrize("depth", [0.125, 0.375, 0.625, 0.875])
def test_needles_stand_in_their_part_of_the_text(text_file: Path, depth: float) -> None:
    subject = Listening(byte_tokenizer())
    cell = {"tokens": 4096, "seed": 3, "depth": depth}
    settings = {"depths": 4, "needles": 3, "distractors": 5, "file": text_file}
    records = found(subject, cell, **settings)
    assert len({record["name"] for record in records}) == 3
    for record in records:
        # a window of 128 tokens is 3% of the text
        assert depth - 0.16 < record["stands_at"] < depth + 0.16
        at = subject.text.index(f"The secret number of '{record['name']}' is {record['expected']}.")
        assert at / len(subject.text) == pytest.approx(record["stands_at"])
        assert 4096 <= record["tokens_read"] < 4096 + 128
    assert len(re.findall("The secret number", subject.text)) == 8
    assert records == found(Listening(byte_tokenizer()), cell, **settings)
    assert records != found(Listening(byte_tokenizer()), {**cell, "seed": 4}, **settings)


def test_a_long_text_is_read_in_pieces_and_keeps_all_needles(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longfocus.evaluation.needles.PIECE_TOKENS", 600)
    subject = Listening(byte_tokenizer())
    cell = {"tokens": 2000, "seed": 1, "depth": 0.5}
    records = found(subject, cell, depths=1, needles=9, distractors=4, file=text_file)
    assert len(records) == 9
    assert all(record["is_right"] for record in records)
    assert len(re.findall("The secret number", subject.text)) == 13
    places = [record["stands_at"] for record in records]
    assert places == sorted(places)


def test_needle_and_question_are_worded_by_the_user(text_file: Path) -> None:
    texts = {"needle": "The {pass} key is 77 {value}.", "question": "Key?", "answer": "77"}
    subject = Listening(byte_tokenizer())
    (record,) = found(
        subject, {"tokens": 512, "seed": 1, "depth": 0.5}, depths=1, file=text_file, **texts
    )
    assert record["expected"] == "77"
    assert re.search(r"The {pass} key is 77 \d{5}\.", subject.text)
    assert not record["is_right"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depths": 0}, "must be at least 1"),
        ({"distractors": -1}, "0 or more"),
        ({"needle": "The {name} is {value}"}, "belong together"),
        ({"needle": "x", "question": "x", "answer": " "}, "belong together"),
        ({"needle": "x", "question": "x", "answer": "x", "needles": 2}, "by their names"),
        ({"needle": "{name}", "question": "x", "answer": "x"}, "by their names"),
        ({"file": Path("/nowhere.txt")}, "is not a file"),
    ],
)
def test_what_cannot_be_hidden_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(LongFocusError, match=told):
        needle.NeedleSettings(**wrong)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (" 48213.", True),
        ("It is 48213", True),
        ("482134", False),
        ("1 48213x", False),
        ("", False),
    ],
)
def test_answers_are_judged_in_whole_words(answer: str, is_right: bool) -> None:
    assert is_in("48213", answer) is is_right


def test_case_and_signs_of_an_answer_do_not_matter() -> None:
    assert is_in("eat a Sandwich (hot)", "You should EAT A SANDWICH (HOT)!")


def test_every_depth_of_every_length_is_a_cell() -> None:
    settings = needle.NeedleSettings(tokens=("2K", "1K"), seeds=(1, 2), depths=2)
    cells = list(needle.cells(settings))
    assert len(cells) == 8
    assert cells[0] == {"tokens": 1024, "seed": 1, "depth": 0.25}
    assert cells[-1] == {"tokens": 2048, "seed": 2, "depth": 0.75}


def test_who_remembers_nothing_finds_no_needle(text_file: Path) -> None:
    cell = {"tokens": 512, "seed": 1, "depth": 0.5}
    (record,) = found(Blind(byte_tokenizer()), cell, depths=1, file=text_file)
    assert not record["is_right"]
