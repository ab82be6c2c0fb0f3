"""Real text with pass-key lines hidden in it: what the pass-key evaluation reads.

    plain   a few keys in a long text                       # The pass key of 'window_parser' is 48213.
    hard    four keys in every window, all from 500 words: every name shares its words with many others

The text comes in pieces of growing total length, so that one memory can be asked at 4K, 16K, ... tokens without
reading anything twice. Every planted line stands whole inside one window (a line that a window border cuts has
its name in one window and its digits in the next, and nothing can join them).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longfocus.errors import LongFocusError
from longfocus.evaluation.source_lines import SourceLine, token_counts

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

    def hidden_tokens(self, tokenizer: Any) -> int:
        """Those of the lines that hide its keys."""
        lines = [f"\n{self.text[slice(*key.span)]}" for key in self.keys]
        return sum(token_counts(lines, tokenizer))

    def place(self, character: int) -> str:
        """The line of the original text at a character; for a planted line, the one before it."""
        return self.places[max(bisect_right(self.starts, character) - 1, 0)]


def draw_names(words: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Names from two of the words, none twice, in random order."""
    for pair in rng.permutation(len(words) ** 2):
        yield f"{words[pair // len(words)]}_{words[pair % len(words)]}"


def refuse_few_words(words: Sequence[str], names: int) -> None:
    """Raise LongFocusError for more names than `draw_names` has."""
    if names > len(words) ** 2:
        raise LongFocusError(
            f"{names:,} lines are to be hidden, each with a name of its own, and {len(words):,} words make "
            f"{len(words) ** 2:,} names. Hide fewer, give shorter --tokens, or a text or passkey_words.json with more "
            "words."
        )


def key_line(name: str, digits: str) -> str:
    """The line that hides a pass key."""
    return LINE.format(name=name, digits=digits)


class _Waiting(NamedTuple):
    """A line that is to be planted."""

    tokens: int
    place: float
    """Share of its window before which it should not stand."""
    name: str
    digits: str
    text: str


class Haystack:
    """Hands out the pieces of one haystack; `line` makes what is hidden of a name and its digits."""

    def __init__(
        self,
        lines: Iterator[SourceLine],
        tokenizer: Any,
        words: Sequence[str],
        *,
        window: int,
        seed: int,
        line: Callable[[str, str], str] = key_line,
    ) -> None:
        self.lines, self.tokenizer, self.window, self.line = lines, tokenizer, window, line
        self.rng = np.random.default_rng(seed)
        self.words, self.names = words, draw_names(words, self.rng)
        self.pieces = 0

    def piece(self, tokens: int, *, keys: int | None = None) -> Piece:
        """The next piece, of at least `tokens` tokens: with `keys` pass keys, or None: four in every window."""
        windows = -(-tokens // self.window)
        if keys is None:
            counts = np.full(windows, HARD_KEYS_PER_WINDOW)
        else:
            counts = np.bincount(np.arange(keys) % windows, minlength=windows)
            counts = self.rng.permutation(counts)
        # drawn window by window, as the text is put together
        return self._planted(tokens, (np.sort(self.rng.random(count)) for count in counts))

    def piece_with(self, tokens: int, depths: Sequence[float]) -> Piece:
        """The next piece, with a key at each of these depths: from 0, its beginning, to before 1, its end."""
        places = np.sort(np.asarray(depths, dtype=np.float64)) * tokens / self.window
        windows = range(-(-tokens // self.window))
        return self._planted(
            tokens, (places[places.astype(int) == window] % 1 for window in windows)
        )

    def _planted(self, tokens: int, places: Iterable[NDArray[np.float64]]) -> Piece:
        """A piece with a key at each of the places of every window."""
        planter = _Planter(self.window, self.pieces)
        self.pieces += 1
        for window, own in enumerate(places):
            planter.plan(self._draw_keys(own))
            while planter.tokens < min((window + 1) * self.window, tokens):
                planter.add(next(self.lines))
        while planter.waiting:
            planter.add(next(self.lines))
        return self._finished(planter, tokens)

    def _finished(self, planter: "_Planter", tokens: int) -> Piece:
        """The piece with its real number of tokens: another tokenizer may join what is counted line by line."""
        while True:
            count = token_counts(["".join(planter.parts)], self.tokenizer)[0]
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

    def _draw_keys(self, places: NDArray[np.float64]) -> list[_Waiting]:
        """New keys for these places of a window."""
        drawn = [
            (next(self.names), "".join(map(str, self.rng.integers(10, size=DIGITS))))
            for _ in places
        ]
        texts = [self.line(*key) for key in drawn]
        sizes = token_counts([f"\n{text}" for text in texts], self.tokenizer)
        if max(sizes, default=0) > self.window:
            raise LongFocusError(
                f"A line to be hidden has up to {max(sizes)} tokens, which does not fit in a window of {self.window}. "
                "Use a model with longer windows."
            )
        return [
            _Waiting(size, float(place), *key, text)
            for size, place, key, text in zip(sizes, places, drawn, texts, strict=True)
        ]


class _Planter:
    """Puts lines of text and waiting keys together, so that no key crosses a window border."""

    def __init__(self, window: int, piece: int) -> None:
        self.window, self.piece = window, piece
        self.parts: list[str] = []
        self.keys: list[PlantedKey] = []
        self.starts: list[int] = []
        self.places: list[str] = []
        self.waiting: list[_Waiting] = []
        self.tokens = self.characters = 0

    def plan(self, keys: list[_Waiting]) -> None:
        # those that found no room in the window before stand first in this one
        self.waiting = [waiting._replace(place=0.0) for waiting in self.waiting] + keys

    def add(self, line: SourceLine) -> None:
        """Add a line of text, and before it the keys whose turn has come."""
        while self.waiting:
            first = self.waiting[0]
            used = self.tokens % self.window
            needed = sum(waiting.tokens for waiting in self.waiting)
            is_late = used + line.tokens + needed > self.window
            is_time = is_late or used >= first.place * self.window
            if used + first.tokens > self.window or not is_time:
                break
            self.waiting.pop(0)
            span = (self.characters + 1, self.characters + 1 + len(first.text))
            key = (first.name, first.digits, self.piece, span, line.file, line.number)
            self.keys.append(PlantedKey(*key))
            self._append(first.text, first.tokens)
        self.starts.append(self.characters + 1)
        self.places.append(f"{line.file}:{line.number}")
        self._append(line.text, line.tokens)

    def _append(self, text: str, tokens: int) -> None:
        self.parts.append("\n" + text)
        self.characters += 1 + len(text)
        self.tokens += tokens
