"""Real text with pass-key lines hidden in it: what the pass-key evaluation reads.

    plain   a few keys in a long text                       # The pass key of 'window_parser' is 48213.
    hard    four keys in every window, all from 500 words: every name shares its words with many others

The text comes in pieces of growing total length, so that one memory can be asked at 4K, 16K, ... tokens without
reading anything twice. Every planted line stands whole inside one window (a line that a window border cuts has
its name in one window and its digits in the next, and nothing can join them).
"""

import re
import sysconfig
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longfocus.errors import LongFocusError

DIGITS = 5
HARD_KEYS_PER_WINDOW = 4
LINE = "# The pass key of '{name}' is {digits}."
CONTEXT = """

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    args = parser.parse_args()
    return run(args)
"""
"""Lines before every question, as a file has them: at the very start of a window the small model answers worse."""
QUESTION = CONTEXT + "\n# The pass key of '{name}' is "
WORDS, FEWEST_WORDS = 500, 30
"""Words that names are made of."""
_WORD = re.compile(r"(?<![A-Za-z])[a-z]{4,9}(?![A-Za-z])")
MAX_LINE_CHARACTERS = 400
"""Longer lines (tables of data) are shortened, so that keys find room in every window."""


@dataclass(frozen=True)
class PlantedKey:
    """One pass-key line and where it stands."""

    name: str
    digits: str
    piece: int
    """Number of the piece, from 0."""

    span: tuple[int, int]
    """First and last character of the line in the text of its piece (end exclusive, newline not counted)."""

    file: str
    """The file before whose line it was planted, as the haystack's files are named."""

    line: int
    """That line's number, from 1."""

    @property
    def question(self) -> str:
        return QUESTION.format(name=self.name)


@dataclass(frozen=True)
class Piece:
    """A part of the haystack."""

    text: str
    tokens: int
    keys: tuple[PlantedKey, ...]
    starts: tuple[int, ...]
    """First character of every line of the text that hides the keys, ascending."""

    places: tuple[str, ...]
    """File and number of those lines, as `file:line`."""

    def place(self, character: int) -> str:
        """The line of the original text at a character; for a planted line, the one before it."""
        return self.places[max(bisect_right(self.starts, character) - 1, 0)]


class SourceLine(NamedTuple):
    """A line of the text that hides the keys."""

    file: str
    number: int
    text: str
    tokens: int
    """Tokens of the line together with the newline before it."""


def standard_library_lines(tokenizer: Any, seed: int) -> Iterator[SourceLine]:
    """The Python standard library's own source files, in an order drawn from the seed, again and again."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    if not files:
        raise LongFocusError(
            f"The standard library's source code is not installed: no .py file under {root}. "
            "Give a text file of your own instead."
        )
    order = np.random.default_rng(seed).permutation(len(files))
    while True:
        for index in order:
            yield from file_lines(
                files[index], tokenizer, files[index].relative_to(root).as_posix()
            )


def frequent_words(file: Path | None = None) -> list[str]:
    """The most frequent words of a text, or of the standard library, for names: where a model has none of its own."""
    root = Path(sysconfig.get_paths()["stdlib"])
    counts: Counter[str] = Counter()
    for path in [file] if file is not None else sorted(root.glob("*.py")):
        counts.update(_WORD.findall(path.read_text(encoding="utf-8", errors="replace")))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]
    if len(words) < FEWEST_WORDS:
        raise LongFocusError(
            f"{file or root} has only {len(words)} words to make names of, and {FEWEST_WORDS} are needed. Give a "
            "longer text, in English or in code."
        )
    return words


def repeated_file_lines(path: Path, tokenizer: Any) -> Iterator[SourceLine]:
    """The lines of one text file, from the top again when it ends."""
    lines = list(file_lines(path, tokenizer, path.name))
    if not lines:
        raise LongFocusError(
            f"There is no text in {path}. Give a file that has some lines of text."
        )
    while True:
        yield from lines


def file_lines(path: Path, tokenizer: Any, name: str) -> Iterator[SourceLine]:
    """The lines of a file with their numbers of tokens."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line[:MAX_LINE_CHARACTERS].rstrip() for line in text.splitlines()]
    sizes = _token_counts([f"\n{line}" for line in lines], tokenizer)
    for number, (line, size) in enumerate(zip(lines, sizes, strict=True), start=1):
        yield SourceLine(name, number, line, size)


def _token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def draw_names(words: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Names from two of the words, none twice, in random order."""
    for pair in rng.permutation(len(words) ** 2):
        yield f"{words[pair // len(words)]}_{words[pair % len(words)]}"


class Haystack:
    """Hands out the pieces of one haystack."""

    def __init__(
        self,
        lines: Iterator[SourceLine],
        tokenizer: Any,
        words: Sequence[str],
        *,
        window: int,
        seed: int,
    ) -> None:
        self.lines, self.tokenizer, self.window = lines, tokenizer, window
        self.rng = np.random.default_rng(seed)
        self.names = draw_names(words, self.rng)
        self.pieces = 0

    def piece(self, tokens: int, *, keys: int | None = None) -> Piece:
        """The next piece, of at least `tokens` tokens: with `keys` pass keys, or None: four in every window."""
        windows = -(-tokens // self.window)
        if keys is None:
            counts = np.full(windows, HARD_KEYS_PER_WINDOW)
        else:
            counts = np.bincount(np.arange(keys) % windows, minlength=windows)
            counts = self.rng.permutation(counts)
        planter = _Planter(self.window, self.pieces)
        self.pieces += 1
        for window, count in enumerate(counts):
            planter.plan(self._draw_keys(int(count)))
            while planter.tokens < min((window + 1) * self.window, tokens):
                planter.add(next(self.lines))
        while planter.waiting:
            planter.add(next(self.lines))
        return self._finished(planter, tokens)

    def _finished(self, planter: "_Planter", tokens: int) -> Piece:
        """The piece with its real number of tokens: another tokenizer may join what is counted line by line."""
        while True:
            count = _token_counts(["".join(planter.parts)], self.tokenizer)[0]
            if count >= tokens:
                return Piece(
                    "".join(planter.parts),
                    count,
                    tuple(planter.keys),
                    tuple(planter.starts),
                    tuple(planter.places),
                )
            for _ in range(1 + (tokens - count) // 16):
                planter.add(next(self.lines))

    def _draw_keys(self, count: int) -> list[tuple[int, float, str, str]]:
        """(tokens, where in the window it should stand at the earliest, name, digits) of new keys."""
        places = np.sort(self.rng.random(count))
        drawn = [
            (next(self.names), "".join(map(str, self.rng.integers(10, size=DIGITS))))
            for _ in range(count)
        ]
        sizes = _token_counts(
            ["\n" + LINE.format(name=name, digits=digits) for name, digits in drawn], self.tokenizer
        )
        if max(sizes, default=0) > self.window:
            raise LongFocusError(
                f"A pass-key line has up to {max(sizes)} tokens, which does not fit in a window of {self.window}. Use "
                "a model with longer windows."
            )
        return [(size, place, *key) for size, place, key in zip(sizes, places, drawn, strict=True)]


class _Planter:
    """Puts lines of text and waiting keys together, so that no key crosses a window border."""

    def __init__(self, window: int, piece: int) -> None:
        self.window, self.piece = window, piece
        self.parts: list[str] = []
        self.keys: list[PlantedKey] = []
        self.starts: list[int] = []
        self.places: list[str] = []
        self.waiting: list[tuple[int, float, str, str]] = []
        self.tokens = self.characters = 0

    def plan(self, keys: list[tuple[int, float, str, str]]) -> None:
        # those that found no room in the window before stand first in this one
        self.waiting = [(size, 0.0, name, digits) for size, _, name, digits in self.waiting] + keys

    def add(self, line: SourceLine) -> None:
        """Add a line of text, and before it the keys whose turn has come."""
        while self.waiting:
            size, place, name, digits = self.waiting[0]
            used = self.tokens % self.window
            needed = sum(key[0] for key in self.waiting)
            is_late = used + line.tokens + needed > self.window
            if used + size > self.window or not (is_late or used >= place * self.window):
                break
            self.waiting.pop(0)
            text = LINE.format(name=name, digits=digits)
            span = (self.characters + 1, self.characters + 1 + len(text))
            self.keys.append(PlantedKey(name, digits, self.piece, span, line.file, line.number))
            self._append(text, size)
        self.starts.append(self.characters + 1)
        self.places.append(f"{line.file}:{line.number}")
        self._append(line.text, line.tokens)

    def _append(self, text: str, tokens: int) -> None:
        self.parts.append("\n" + text)
        self.characters += 1 + len(text)
        self.tokens += tokens
