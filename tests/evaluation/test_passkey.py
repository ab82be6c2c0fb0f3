"""The pass-key evaluation: keys stand whole in windows, lengths are never short, and scores are exact."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import longfocus
from longfocus.errors import LongFocusError
from longfocus.evaluation.haystack import (
    LINE,
    Haystack,
    Piece,
)
from longfocus.evaluation.passkey import (
    PasskeyTask,
    _look,
    evaluate_passkey,
    exact_match,
)
from longfocus.evaluation.source_lines import repeated_file_lines, standard_library_lines
from longfocus.inference.answer import Span
from longfocus.inference.session import Answer
from longfocus.training.tokenizer import train_tokenizer

WORDS = (
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
)
WINDOW = 128


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.py"
    lines = [
        " " * 4 * rng.integers(3) + " ".join(rng.choice(WORDS, size=rng.integers(1, 9)))
        for _ in range(300)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tokenizer(text_file: Path) -> Any:
    return train_tokenizer(
        iter([text_file.read_text(), LINE.format(name="alpha_bravo", digits="12345")]), 400
    )


@pytest.fixture
def haystack(text_file: Path, tokenizer: Any) -> Haystack:
    return Haystack(
        repeated_file_lines(text_file, tokenizer), tokenizer, WORDS, window=WINDOW, seed=0
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    focus = longfocus.FocusConfig(memory_layers=(1,), window=WINDOW, positions="none")
    return longfocus.attach(Qwen3ForCausalLM(config).eval(), focus, verify=False)


def windows_of(piece: Piece, tokenizer: Any) -> Iterator[tuple[int, int]]:
    """First and last window of every planted line, as the model will read them."""
    starts = np.array(tokenizer(piece.text, return_offsets_mapping=True)["offset_mapping"])[:, 0]
    for key in piece.keys:
        first, last = np.searchsorted(starts, [key.span[0] - 1, key.span[1] - 1])
        yield int(first) // WINDOW, int(last) // WINDOW


@pytest.mark.parametrize("keys", [3, 40, None])
def test_planted_lines_stand_whole_in_one_window(
    haystack: Haystack, tokenizer: Any, keys: int | None
) -> None:
    for tokens in (1000, 1500):
        piece = haystack.piece(tokens, keys=keys)
        assert len(piece.keys) == (keys if keys is not None else 4 * -(-tokens // WINDOW))
        assert all(first == last for first, last in windows_of(piece, tokenizer))


def test_hard_windows_hold_about_four_lines_each(text_file: Path, tokenizer: Any) -> None:
    haystack = Haystack(
        repeated_file_lines(text_file, tokenizer), tokenizer, WORDS, window=256, seed=0
    )
    piece = haystack.piece(256 * 8)
    assert len(piece.keys) == 32


def test_pieces_are_never_shorter_than_asked_and_know_their_lines(
    haystack: Haystack, tokenizer: Any
) -> None:
    names = set()
    for number, tokens in enumerate((300, 511, 1024)):
        piece = haystack.piece(tokens, keys=5)
        assert piece.tokens == len(tokenizer(piece.text)["input_ids"]) >= tokens
        for key in piece.keys:
            assert piece.text[slice(*key.span)] == LINE.format(name=key.name, digits=key.digits)
            assert piece.text[: key.span[0]].endswith("\n")
            assert (key.piece, key.file) == (number, "text.py")
            names.add(key.name)
    assert len(names) == 15


def test_the_line_after_a_planted_one_is_that_of_the_file(
    haystack: Haystack, text_file: Path
) -> None:
    source = text_file.read_text().split("\n")
    piece = haystack.piece(900, keys=4)
    for key in piece.keys:
        following = next(
            line for line in piece.text[key.span[1] + 1 :].split("\n") if "pass key" not in line
        )
        assert following == source[key.line - 1].rstrip()


def test_the_same_seed_gives_the_same_haystack(text_file: Path, tokenizer: Any) -> None:
    def build(seed: int) -> Piece:
        lines = repeated_file_lines(text_file, tokenizer)
        return Haystack(lines, tokenizer, WORDS, window=WINDOW, seed=seed).piece(600)

    assert build(1) == build(1)
    assert build(1) != build(2)


def test_standard_library_lines_name_their_files(tokenizer: Any) -> None:
    lines = standard_library_lines(tokenizer, seed=3)
    first = [next(lines) for _ in range(20)]
    root = Path(sysconfig.get_paths()["stdlib"])
    source = (root / first[0].file).read_text(errors="replace").splitlines()
    assert next(line.number for line in first if line.file == first[0].file) == 1
    assert first[0].text == source[0][:400].rstrip()
    assert first[0].tokens == len(tokenizer("\n" + first[0].text)["input_ids"])


def test_an_empty_file_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(LongFocusError, match="no text"):
        next(repeated_file_lines(tmp_path / "empty.txt", tokenizer))


def test_only_the_exact_digits_are_right(haystack: Haystack) -> None:
    keys = haystack.piece(300, keys=4).keys
    texts = [keys[0].digits, keys[1].digits[:4], keys[2].digits + ".", f" {keys[3].digits}"]
    assert exact_match(keys, [Answer(text, ()) for text in texts]) == 0.5


def test_a_look_is_right_only_inside_the_planted_line(haystack: Haystack) -> None:
    pieces = [haystack.piece(300, keys=4), haystack.piece(300, keys=4)]
    key, other = pieces[1].keys[:2]

    def look(piece: int, start: int) -> Any:
        span = Span(str(piece), start, start + 1, 1, "x", 0.7)
        return _look(key, (span,), pieces)

    assert look(1, key.span[0] + 3).is_right
    assert look(1, other.span[0]).found == other
    assert not look(0, key.span[0] + 3).is_right
    assert look(1, key.span[1]).found is None
    assert _look(key, (), pieces).found is None


@pytest.mark.parametrize("keys", [6, None])
def test_one_memory_grows_from_length_to_length(
    model: Any, tokenizer: Any, text_file: Path, keys: int | None
) -> None:
    task = PasskeyTask(keys=keys, questions=5, lengths=(300, 700), file=text_file)
    seen: list[tuple[int, int]] = []
    small, large = evaluate_passkey(
        model, tokenizer, task, words=WORDS, progress=lambda done, total: seen.append((done, total))
    )
    assert (small.tokens, large.tokens) == (300, 700)
    assert small.tokens_read >= 300
    assert large.tokens_read >= 700
    assert (small.keys, large.keys) == (6, 12) if keys else small.keys == 12 < large.keys
    assert small.questions == large.questions == len(large.looks) == 5
    assert small.accuracy_without_memory == large.accuracy_without_memory == 0.0
    assert large.memory_bytes > small.memory_bytes > 0
    assert list(dict.fromkeys(total for _, total in seen)) == [300, 700]
    assert all(done <= total for done, total in seen)
