"""Lines of text with their numbers of tokens, and the words that occur in them: what haystacks are made of."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longfocus.core import standard_library
from longfocus.errors import LongFocusError

WORDS_FILE = "passkey_words.json"
"""Beside a model: words that it saw in no name of its training, under "test"."""
WORDS, FEWEST_WORDS = 500, 30
"""Words that names are made of."""
MAX_LINE_CHARACTERS = 400
"""Longer lines (tables of data) are shortened, so that keys find room in every window."""
_WORD = re.compile(r"(?<![A-Za-z])[a-z]{4,9}(?![A-Za-z])")


class SourceLine(NamedTuple):
    """A line of a text."""

    file: str
    number: int
    text: str
    tokens: int
    """Tokens of the line together with the newline before it."""


class Lines(Iterator[SourceLine]):
    """Lines without end: a text, and when it ends the same text again."""

    repeated = 0
    """How many times it began again."""

    def __init__(self, text: Callable[[], Iterable[SourceLine]]) -> None:
        self._lines = self._all(text)

    def __next__(self) -> SourceLine:
        return next(self._lines)

    def _all(self, text: Callable[[], Iterable[SourceLine]]) -> Iterator[SourceLine]:
        for self.repeated in count():
            yield from text()


def standard_library_lines(tokenizer: Any, seed: int) -> Lines:
    """The Python standard library's own source files, in an order drawn from the seed, again and again."""
    root, files = standard_library.folder(), standard_library.source_files()
    order = np.random.default_rng(seed).permutation(len(files))

    def text() -> Iterator[SourceLine]:
        for index in order:
            yield from file_lines(
                files[index], tokenizer, files[index].relative_to(root).as_posix()
            )

    return Lines(text)


def frequent_words(file: Path | None = None) -> list[str]:
    """The most frequent words of a text for names, where a model has none of its own.

    Of the standard library where there is no text, or it has too few words in Latin letters.
    """
    counts: Counter[str] = Counter()
    for path in [file] if file is not None else standard_library.modules():
        counts.update(_WORD.findall(path.read_text(encoding="utf-8", errors="replace")))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]
    return words if file is None or len(words) >= FEWEST_WORDS else frequent_words()


def words_of_names(folder: Path, file: Path | None = None) -> list[str]:
    """Words for names that the model of a folder has not learned, else the most frequent ones of the text."""
    own = folder / WORDS_FILE
    return _words_in(own) if own.is_file() else frequent_words(file)


def _words_in(path: Path) -> list[str]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["test"]
    except (ValueError, KeyError, TypeError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise LongFocusError(
            f'{path} is damaged: it should be JSON with a list of words under "test". Put the file of the model back, '
            "or take it away: names are then made of the most frequent words of the text."
        )
    return words


def lines_of(file: Path | None, tokenizer: Any, seed: int) -> Lines:
    """Lines without end: of a text file, or of the standard library."""
    if file is None:
        return standard_library_lines(tokenizer, seed)
    return repeated_file_lines(file, tokenizer)


def repeated_file_lines(path: Path, tokenizer: Any) -> Lines:
    """The lines of one text file, from the top again when it ends."""
    lines = list(file_lines(path, tokenizer, path.name))
    if not lines:
        raise LongFocusError(
            f"There is no text in {path}. Give a file that has some lines of text."
        )
    return Lines(lambda: lines)


def file_lines(path: Path, tokenizer: Any, name: str) -> Iterator[SourceLine]:
    """The lines of a file with their numbers of tokens."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line[:MAX_LINE_CHARACTERS].rstrip() for line in text.splitlines()]
    sizes = token_counts([f"\n{line}" for line in lines], tokenizer)
    for number, (line, size) in enumerate(zip(lines, sizes, strict=True), start=1):
        yield SourceLine(name, number, line, size)


def token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    """Tokens of each text, without those that a tokenizer puts around one."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
