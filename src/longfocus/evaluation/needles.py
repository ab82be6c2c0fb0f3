"""Needles: sentences hidden at a chosen depth of a long text, among others that differ from them in their names.

    text     |----------|----needles----|-----------|     all needles stand at random places of one band of depths,
             |--d-------|-------d-------|---d-------|     distractors, which are never asked for, anywhere

What a line may be is the haystack's business (haystack.py): here is where they stand, and what is asked.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from longfocus.evaluation.haystack import (
    LINE,
    QUESTION,
    Haystack,
    Piece,
    PlantedKey,
    refuse_few_words,
)
from longfocus.evaluation.hidden_lines import refuse_crowded
from longfocus.evaluation.passkey import PIECE_TOKENS
from longfocus.evaluation.source_lines import lines_of, words_of_names
from longfocus.evaluation.subject import Subject

SPARE_TOKENS = 8
"""Of an answer, beyond a repetition of the whole needle."""


@dataclass(frozen=True)
class Wording:
    """What is hidden, what is asked, and what a right answer holds; {name} and {value} stand for what is drawn."""

    needle: str
    question: str
    answer: str


WORDINGS = {
    "sentence": Wording(
        "The secret number of '{name}' is {value}.",
        "What is the secret number of '{name}'? The secret number of '{name}' is",
        "{value}",
    ),
    "passkey": Wording(LINE.replace("{digits}", "{value}"), QUESTION, "{value}"),
}

_LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
"""Of a word that spaces part from others: not Thai, Lao, Burmese, Khmer, Japanese or Chinese."""


class Needle(NamedTuple):
    """One that is asked for."""

    key: PlantedKey
    depth: float
    """Share of the text's characters that stand before it."""


def filled_in(wording: str, name: str, value: str) -> str:
    """A wording with what was drawn; other braces are left as they are."""
    return wording.replace("{name}", name).replace("{value}", value)


def is_in(expected: str, answer: str) -> bool:
    """Whether an answer holds what is expected, in whole words, whatever the case."""
    pattern = rf"(?<!{_LETTER}){re.escape(expected.strip().casefold())}(?!{_LETTER})"
    return re.search(pattern, answer.casefold()) is not None


class Hiding:
    """The text of one cell, put together from lines of a file or of the standard library."""

    def __init__(self, subject: Subject, settings: Any, wording: Wording, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.subject, self.window = subject, subject.window
        self._lines = lines_of(settings.file, subject.tokenizer, seed)
        self._haystack = Haystack(
            self._lines,
            subject.tokenizer,
            words_of_names(subject.folder, settings.file),
            window=subject.window,
            seed=seed,
            line=lambda name, value: filled_in(wording.needle, name, value),
        )

    def hide(
        self, tokens: int, asked: Sequence[float], others: Sequence[float]
    ) -> tuple[list[Piece], list[Needle]]:
        """A text with needles at these depths, from 0 to before 1; given are its pieces, and those `asked`.

        Raises LongFocusError for more needles than there are names, or than leave room for a text.
        """
        refuse_few_words(self._haystack.words, len(asked) + len(others))
        order = sorted([(depth, True) for depth in asked] + [(depth, False) for depth in others])
        pieces = self._pieces(tokens, [depth for depth, _ in order])
        hidden = sum(piece.hidden_tokens(self.subject.tokenizer) for piece in pieces)
        refuse_crowded(hidden, tokens, "Hide fewer --needles and --distractors")
        self.subject.costs.text_repeated = self._lines.repeated
        # lines keep their order, whatever room they find
        keys = [key for piece in pieces for key in piece.keys]
        before = np.cumsum([0, *(len(piece.text) for piece in pieces)])
        needles = [
            Needle(key, float((before[key.piece] + key.span[0]) / before[-1]))
            for key, (_, is_asked) in zip(keys, order, strict=True)
            if is_asked
        ]
        return pieces, needles

    def _pieces(self, tokens: int, depths: Sequence[float]) -> list[Piece]:
        # whole windows, so that the windows of a piece are those of the text
        size = max(PIECE_TOKENS // self.window, 1) * self.window
        pieces = []
        for start in range(0, tokens, size):
            own = min(size, tokens - start)
            places = [(depth * tokens - start) / own for depth in depths]
            pieces.append(
                self._haystack.piece_with(own, [place for place in places if 0 <= place < 1])
            )
        return pieces


def in_band(rng: np.random.Generator, count: int, depth: float, depths: int) -> list[float]:
    """Random depths in the band around one of `depths` that lie evenly apart."""
    return (depth + (rng.random(count) - 0.5) / depths).tolist()
