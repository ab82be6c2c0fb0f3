"""Pass-key lines as tokens: whole, distinct, hard where asked, and asked where they are defined."""

import numpy as np
import pytest

from longfocus.training.passkey_task import (
    DIGITS,
    LINE,
    LineMaker,
    choose_words,
    dense_windows,
    mixed_window,
)
from longfocus.training.tokenizer import train_tokenizer

WORDS = tuple(
    sorted(
        {
            f"{a}{b}"
            for a in ("par", "win", "con", "str")
            for b in ("ser", "dow", "fig", "ing", "ed")
        }
    )
)
TEXT = "\n".join(LINE.format(name=f"{a}_{b}", digits="12345") for a in WORDS for b in WORDS)


@pytest.fixture(scope="module")
def maker() -> LineMaker:
    return LineMaker(train_tokenizer(iter([TEXT]), 330), WORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT]), 330)


def test_lines_have_the_tokens_of_their_text(maker: LineMaker, tokenizer) -> None:
    lines = maker.draw(20, np.random.default_rng(0))
    for ids, first in zip(lines.ids, lines.first_digit, strict=True):
        text = tokenizer.decode(ids)
        assert tokenizer(text)["input_ids"] == ids.tolist()
        digits = tokenizer.decode(ids[first : first + DIGITS])
        name = text.split("'")[1]
        assert text == "\n" + LINE.format(name=name, digits=digits)


def test_names_are_distinct_and_hard_ones_share_few_words(maker: LineMaker, tokenizer) -> None:
    for seed in range(20):
        lines = maker.draw(30, np.random.default_rng(seed), hard=1.0)
        names = [tokenizer.decode(ids).split("'")[1] for ids in lines.ids]
        assert len(set(names)) == 30
    easy = maker.draw(100, np.random.default_rng(0))
    assert len({tokenizer.decode(ids).split("'")[1] for ids in easy.ids}) == 100


def test_the_same_generator_gives_the_same_lines(maker: LineMaker) -> None:
    one, two = (maker.draw(9, np.random.default_rng(5), hard=0.5) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.ids, two.ids, strict=True))


def test_test_words_are_kept_apart() -> None:
    texts = [f"{word} " * (i + 1) for i, word in enumerate(WORDS)]
    words = choose_words(texts, seed=0, total=15, test=3)
    assert len(words.test) == 3
    assert len(words.train) == 12
    assert not set(words.train) & set(words.test)
    assert words == choose_words(reversed(texts), seed=0, total=15, test=3)
    assert words != choose_words(texts, seed=1, total=15, test=3)


def test_dense_windows_hold_whole_lines_and_ask_only_those(maker: LineMaker) -> None:
    lines = maker.draw(20, np.random.default_rng(0))
    before = dense_windows(lines, np.arange(20).reshape(2, 10), window=120)
    assert before.ids.shape == (2, 120)
    stands = before.whole >= 0
    assert stands[:, 0].all()
    assert not stands.all()
    assert before.digits.sum() == DIGITS * stands.sum()
    for row, line in zip(*np.nonzero(stands), strict=True):
        text = lines.ids[before.whole[row, line]].tolist()
        assert any(before.ids[row, i : i + len(text)].tolist() == text for i in range(120))
    again = dense_windows(lines, before.whole[:, ::-1], window=120)
    assert set(again.whole.ravel()) == set(before.whole.ravel())


def test_mixed_windows_put_whole_lines_between_lines_of_code(maker: LineMaker, tokenizer) -> None:
    code = np.asarray(tokenizer("\nabc\ndef ghi\n" * 40)["input_ids"])
    starts = np.array([tokenizer.decode([i]).startswith("\n") for i in range(len(tokenizer))])
    lines = maker.draw(3, np.random.default_rng(0))
    ids, answers = mixed_window(code, starts, lines, range(3), 200, np.random.default_rng(1))
    assert ids.shape == answers.shape == (200,)
    text = tokenizer.decode(ids)
    for line in range(3):
        assert tokenizer.decode(lines.ids[line]) + "\n" in text + "\n"
    digits = {tokenizer.decode(ids[i : i + DIGITS]) for i in np.flatnonzero(answers)[::DIGITS]}
    assert digits == {
        tokenizer.decode(i[f : f + DIGITS])
        for i, f in zip(lines.ids, lines.first_digit, strict=True)
    }


def test_code_without_line_starts_still_takes_its_lines(maker: LineMaker) -> None:
    lines = maker.draw(1, np.random.default_rng(0))
    starts = np.zeros(400, dtype=bool)
    ids, answers = mixed_window(np.full(100, 70), starts, lines, [0], 100, np.random.default_rng(0))
    assert ids[: len(lines.ids[0])].tolist() == lines.ids[0].tolist()
    assert answers.sum() == DIGITS
