"""The pass-key task: lines that define a key in one window, and questions about them in another.

    previous windows   # The pass key of 'window_parser' is 48213.      (definitions, mixed with code or dense)
    current windows    # The pass key of 'window_parser' is 48213.      (the same line; the loss is on its digits)

The answer can only come from the other window, through the memory layer. What makes it hard is that many lines
compete, so names are pairs from few words: every name shares each of its words with others (hard negatives).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

DIGITS = 5
LINE = "# The pass key of '{name}' is {digits}."
QUESTION = "# The pass key of '{name}' is "
WORDS_FILE = "passkey_words.json"
"""Beside a model: the words below."""
TEST_WORDS = 500
ALL_WORDS = 5000
WORD = re.compile(r"(?<![A-Za-z])[a-z]{4,9}(?![A-Za-z])")


@dataclass(frozen=True)
class Words:
    """The words that names are made of; tests use words that were in no name of the training."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def choose_words(
    texts: Iterable[str], seed: int, *, total: int = ALL_WORDS, test: int = TEST_WORDS
) -> Words:
    """The most frequent words of 4 to 9 letters in `texts`, of which `test` are drawn for tests."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:total]
    reserved = np.random.default_rng(seed).choice(
        len(frequent), size=min(test, len(frequent) // 5), replace=False
    )
    chosen = {frequent[i] for i in reserved}
    return Words(
        train=tuple(sorted(word for word in frequent if word not in chosen)),
        test=tuple(sorted(chosen)),
    )


@dataclass(frozen=True)
class Lines:
    """Pass-key lines as token ids, each beginning with its newline."""

    ids: list[np.ndarray]
    """Tokens of each line, digits and full stop included."""

    first_digit: list[int]
    """Index of the first digit in each line."""

    def __len__(self) -> int:
        return len(self.ids)


class LineMaker:
    """Draws pass-key lines with distinct names."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]) -> None:
        def encode(text: str) -> np.ndarray:
            return np.asarray(
                tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64
            )

        before, between, after = "\n# The pass key of '", "_", "' is "
        self.before, self.between, self.after, self.stop = map(
            encode, (before, between, after, ".")
        )
        self.words = sorted(words)
        self.word_ids = [encode(word) for word in self.words]
        self.digit_ids = np.concatenate([encode(digit) for digit in "0123456789"])

    def draw(self, count: int, rng: np.random.Generator, *, hard: float = 0.0) -> Lines:
        """`count` lines with distinct names; with probability `hard` all of them from the same few words."""
        pool = self._few_words(count, rng) if rng.random() < hard else np.arange(len(self.words))
        pairs = rng.choice(len(pool) ** 2, size=count, replace=False)
        digits = rng.integers(10, size=(count, DIGITS))
        ids, first_digit = [], []
        for pair, answer in zip(pairs, digits, strict=True):
            one, two = pool[pair // len(pool)], pool[pair % len(pool)]
            head = (self.before, self.word_ids[one], self.between, self.word_ids[two], self.after)
            first_digit.append(sum(map(len, head)))
            ids.append(np.concatenate([*head, self.digit_ids[answer], self.stop]))
        return Lines(ids, first_digit)

    def _few_words(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Just enough words for `count` names, or up to four times as many; half of the time neighbours in the
        alphabet, which share their first letters and often their first token."""
        least = int(np.ceil(np.sqrt(count)))
        size = min(len(self.words), int(least * 4 ** rng.random()) + 1)
        if rng.random() < 0.5:
            start = rng.integers(len(self.words) - size + 1)
            return np.arange(start, start + size)
        return rng.choice(len(self.words), size=size, replace=False)


@dataclass(frozen=True)
class DenseWindows:
    """Windows that hold pass-key lines and nothing else, padded with newlines."""

    ids: np.ndarray
    """Token ids (rows, window)."""

    digits: np.ndarray
    """Where the digits stand (rows, window), bool."""

    whole: np.ndarray
    """Which lines stand in each row, -1 for those that did not fit (rows, lines per row)."""


def dense_windows(lines: Lines, order: np.ndarray, window: int) -> DenseWindows:
    """One window for each row of `order` (rows, lines per row), with its lines in that order; -1 is skipped."""
    ids = np.full((len(order), window), lines.ids[0][0], dtype=np.int64)
    digits, whole = np.zeros(ids.shape, dtype=bool), order.copy()
    for row, which in enumerate(order):
        place = 0
        for column, line in enumerate(which):
            if line < 0 or place + len(lines.ids[line]) > window:
                whole[row, column] = -1
                continue
            first = place + lines.first_digit[line]
            ids[row, place : place + len(lines.ids[line])] = lines.ids[line]
            digits[row, first : first + DIGITS] = True
            place += len(lines.ids[line])
    return DenseWindows(ids, digits, whole)


def mixed_window(
    code: np.ndarray,
    starts_line: np.ndarray,
    lines: Lines,
    which: Iterable[int],
    window: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Code with pass-key lines between its lines: token ids (window,), and which of them are answers.

    Lines go before tokens that begin a line, so that they stand whole inside the window.
    """
    which = list(which)
    room = window - sum(len(lines.ids[i]) for i in which)
    code = code[: max(room, 0)]
    places = np.flatnonzero(starts_line[code])
    chosen = (
        np.sort(rng.choice(places, size=len(which)))
        if len(places)
        else np.zeros(len(which), dtype=np.int64)
    )
    parts, answers, done = [], [], 0
    for line, place in zip(rng.permutation(which), chosen, strict=True):
        tokens = lines.ids[line]
        is_digit = np.zeros(len(tokens), dtype=bool)
        is_digit[lines.first_digit[line] : lines.first_digit[line] + DIGITS] = True
        parts += [code[done:place], tokens]
        answers += [np.zeros(place - done, dtype=bool), is_digit]
        done = place
    parts.append(code[done:])
    answers.append(np.zeros(len(code) - done, dtype=bool))
    return np.concatenate(parts)[:window], np.concatenate(answers)[:window]
