"""More than a text, its names or a window hold is refused before the work, or said in the row."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benefiting import Oracle, few_words
from benefiting import found as asked_of
from benefiting import measured as benefit_rows
from examining import Knowing

from longfocus.errors import LongFocusError
from longfocus.evaluation import layers, needles, questions, source_lines
from longfocus.evaluation.experiment import Settings, lengths_and_seeds
from longfocus.evaluation.experiments import EXPERIMENTS, experiment
from longfocus.evaluation.experiments.layers import LayersSettings
from longfocus.evaluation.passkey import PIECE_TOKENS, _new_keys, _next_pieces
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.source_lines import repeated_file_lines
from longfocus.evaluation.subject import Subject
from small import byte_tokenizer, small_model


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 7,000 tokens of bytes."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(rng.choice(words, size=4)) for _ in range(300)))
    return path


class Unread(Knowing):
    """What is refused is refused before anything is read."""

    def read(self, *given: Any) -> Any:
        raise AssertionError("read")


def rows(name: str, subject: Any, **given: Any) -> list[Any]:
    chosen, results = experiment(name), Results()
    run(chosen, chosen.settings(**given), subject, results)
    return results.rows


# seeds


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_seeds_below_zero_are_refused_by_every_experiment(name: str) -> None:
    chosen = experiment(name)
    given: Any = object.__new__(chosen.settings)
    given.__dict__.update(tokens=("1K",), seeds=(1, -1), depths=1, tasks=("a",), methods=("a",))
    given.__dict__.update(documents="single", others=(1,))
    with pytest.raises(LongFocusError, match="--seeds 1 -1"):
        list(chosen.cells(given))
    given.__dict__["seeds"] = (0, 1)
    assert len(list(chosen.cells(given))) >= 2


def test_seed_zero_is_a_seed_of_evaluation() -> None:
    assert [cell["seed"] for cell in lengths_and_seeds(Settings(seeds=(0,)))] == [0]


# names


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("passkey", {"text": "plain", "keys": 5}),
        ("passkey", {"text": "hard"}),
        ("needle", {"needles": 2, "distractors": 3, "depths": 1}),
    ],
)
def test_more_hidden_lines_than_names_are_refused_before_reading(
    name: str, given: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (source_lines, needles):
        monkeypatch.setattr(module, "words_of_names", lambda *given: ["one", "two"])
    told = "lines are to be hidden, each with a name of its own, and 2 words make 4 names"
    with pytest.raises(LongFocusError, match=told):
        rows(name, Unread(byte_tokenizer()), tokens=("2K",), file=text_file, **given)


def test_as_many_hidden_lines_as_names_are_evaluated(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_lines, "words_of_names", lambda *given: ["one", "two"])
    given = {"text": "plain", "keys": 4, "tokens": ("2K",), "file": text_file}
    (row,) = rows("passkey", Knowing(byte_tokenizer()), **given)
    assert (row["accuracy"], row["questions"]) == (1, 4)


def test_benefit_refuses_more_needles_than_names_in_evaluation(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "words_of_names", lambda *given: ["one", "two"])
    with pytest.raises(LongFocusError, match="5 lines are to be hidden"):
        asked_of(Oracle(byte_tokenizer()), text_file.parent, "memory", "needle", 1024, questions=5)


@pytest.mark.parametrize("keys", [None, 7])
@pytest.mark.parametrize("tokens", [1, 500, PIECE_TOKENS, 3 * PIECE_TOKENS + 77])
def test_no_more_names_are_drawn_than_were_foreseen(tokens: int, keys: int | None) -> None:
    drawn = []

    def piece(tokens: int, keys: int | None) -> Any:
        drawn.append(4 * -(-tokens // 100) if keys is None else keys)
        return SimpleNamespace(tokens=tokens)

    list(_next_pieces(SimpleNamespace(piece=piece), tokens, keys))  # type: ignore[arg-type]
    assert sum(drawn) == _new_keys(tokens, keys, 100)


# room


@pytest.mark.parametrize(
    ("name", "given", "fewer"),
    [
        ("passkey", {"text": "plain", "keys": 30}, "--keys"),
        ("needle", {"needles": 30, "depths": 1}, "--needles and --distractors"),
        ("needle", {"needles": 1, "distractors": 29, "depths": 1}, "--needles and --distractors"),
    ],
)
def test_hidden_lines_are_half_of_an_evaluated_text_at_most(
    name: str, given: Any, fewer: str, text_file: Path
) -> None:
    given = {"file": text_file, **given}
    with pytest.raises(LongFocusError, match=rf"may be half of the 1,024 of --tokens.*{fewer}"):
        rows(name, Unread(byte_tokenizer()), tokens=("1K",), **given)
    (row,) = rows(name, Knowing(byte_tokenizer()), tokens=("4K",), **given)
    assert row["accuracy"] == 1


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("passkey", {"text": "landmark", "questions": 3}),
        ("passkey", {"text": "plain", "keys": 4}),
        ("passkey", {"text": "hard"}),
        ("needle", {"needles": 2, "depths": 1}),
    ],
)
def test_rows_of_evaluation_say_how_much_was_read(name: str, given: Any, text_file: Path) -> None:
    chosen, subject = experiment(name), Knowing(byte_tokenizer())
    file = {} if given.get("text") == "landmark" else {"file": text_file}
    settings = chosen.settings(tokens=("1K",), **file, **given)
    (cell,) = chosen.cells(settings)
    records = list(chosen.records(subject, settings, cell))
    read = [record["tokens_read"] for record in records]
    assert chosen.row(records)["tokens_read"] == round(np.mean(read)) >= 1024


# texts that are too short, and no texts


def test_lines_of_a_text_say_how_often_it_began_again(text_file: Path) -> None:
    lines = repeated_file_lines(text_file, byte_tokenizer())
    first = [next(lines) for _ in range(300)]
    assert lines.repeated == 0
    assert [next(lines) for _ in range(300)] == first
    assert lines.repeated == 1


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("passkey", {"text": "plain", "keys": 4}),
        ("needle", {"depths": 1}),
    ],
)
def test_a_row_of_evaluation_says_how_often_its_text_began_again(
    name: str, given: Any, text_file: Path
) -> None:
    subject = Knowing(byte_tokenizer())
    short, long = rows(name, subject, tokens=("1K", "20K"), file=text_file, **given)
    assert "text_repeated" not in short
    assert long["text_repeated"] == 20 * 1024 // len(text_file.read_text()) == 2


def test_a_row_of_benefit_says_how_often_its_text_began_again_in_evaluation(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "words_of_names", few_words)
    given = {"methods": ("memory",), "tasks": ("needle",)}
    found = {
        tokens: benefit_rows(Oracle(byte_tokenizer()), text_file, tokens=(tokens,), **given)
        for tokens in ("1K", "16K")
    }
    short, long = (own["memory", "needle"] for own in found.values())
    assert "text_repeated" not in short
    assert long["text_repeated"] == 16 * 1024 // len(text_file.read_text())


@pytest.mark.parametrize("name", ["passkey", "needle", "retrieval"])
@pytest.mark.parametrize("content", [b"text\n\0\1", "text".encode("utf-16")])
def test_evaluation_refuses_files_that_hold_no_text(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LongFocusError, match="holds NUL bytes"):
        experiment(name).settings(file=tmp_path / "file")


# windows of layers


@pytest.mark.parametrize("window", [0, -3])
def test_evaluation_of_layers_refuses_windows_without_tokens(window: int, text_file: Path) -> None:
    with pytest.raises(LongFocusError, match=f"--window {window}: must be at least 1"):
        LayersSettings(data=(text_file,), window=window)
    with pytest.raises(LongFocusError, match=f"--window {window} cannot be used"):
        layers.window_of(Subject(small_model(), byte_tokenizer()), window)


@pytest.mark.parametrize("tokens", [5, 16, 21])
def test_evaluation_of_layers_reads_less_than_a_window_and_more(
    tokens: int, text_file: Path, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(text_file.read_text()[100 * number :][:100])
    settings = LayersSettings(data=(tmp_path,), window=16, others=(1,), layers=(1,))
    subject = Subject(small_model(), byte_tokenizer())
    found = list(layers.measured(subject, settings, tokens, 1))
    assert subject._read == subject.expected
    assert all(0 < mass < 1 for own in found for mass in own["positive_mass"])
