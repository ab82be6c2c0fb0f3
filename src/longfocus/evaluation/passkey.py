"""Pass keys in real code: a model reads a haystack of growing length and is asked for keys hidden in it.

Only the public API is used: `Session.read` takes the next piece of the text into memory, `Session.ask` answers
all questions as one greedy batch. An answer is right when its five digits are exactly those of the line. The
same questions are also asked without memory: nobody can guess five digits, so that must give 0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longfocus.evaluation.haystack import (
    DIGITS,
    Haystack,
    Piece,
    PlantedKey,
    repeated_file_lines,
    standard_library_lines,
)
from longfocus.inference.answer import Answer, Span
from longfocus.inference.session import Session

LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
PIECE_TOKENS = 65_536
"""Longest text read at once. Session.read tokenises longer ones in parts, which would move window borders."""

Progress = Callable[[int, int], None]
"""Called with (tokens read so far, tokens of the current length)."""


@dataclass(frozen=True, kw_only=True)
class PasskeyTask:
    """What is hidden where, and what is asked."""

    keys: int | None = 40
    """Keys newly hidden at each length; None: the hard haystack, four in every window."""

    questions: int = 40
    """Keys asked at each length, drawn from all that the memory holds by then."""

    lengths: tuple[int, ...] = LENGTHS
    """Tokens in memory, growing; never fewer than said."""

    seed: int = 0
    file: Path | None = None
    """Text to hide the keys in; None: the source code of the standard library."""


@dataclass(frozen=True)
class Look:
    """Where the model looked while it generated the first digit of an answer."""

    key: PlantedKey
    """The line that holds the answer."""

    found: PlantedKey | None
    """The pass-key line that holds the memory entry with most attention, None for an entry outside such lines."""

    weight: float
    """Share of the attention on that entry."""

    place: str
    """The line of the original text there, as `file:line` (for a planted line, the one it was planted before)."""

    @property
    def is_right(self) -> bool:
        return self.found == self.key


@dataclass(frozen=True)
class PasskeyResult:
    """What was measured at one length."""

    tokens: int
    """The length asked for."""

    tokens_read: int
    keys: int
    """Pass-key lines in memory."""

    questions: int
    accuracy: float
    accuracy_without_memory: float
    looked_at_answer: float
    """Share of answers whose most attended memory entry lies in the planted line, at the first digit."""

    looks: tuple[Look, ...]
    reading_tokens_per_second: float
    """Over the newly read part, wall time."""

    seconds_per_answer: float
    memory_bytes: int


def evaluate_passkey(
    model: Any,
    tokenizer: Any,
    task: PasskeyTask,
    *,
    words: Sequence[str],
    progress: Progress = lambda done, total: None,
) -> Iterator[PasskeyResult]:
    """Reads and asks, length by length; each result is given as soon as it is there.

    `words` are the words of the names: words that the model saw in no name of its training.
    """
    session = Session(model, tokenizer)
    haystack = _haystack(tokenizer, task, words, window=model.focus.config.window)
    rng = np.random.default_rng(task.seed + 1)
    pieces: list[Piece] = []
    for length in task.lengths:
        before, reading = session.tokens, 0.0
        for piece in _next_pieces(haystack, length - before, task.keys):
            started = time.perf_counter()
            session.read(piece.text, name=str(len(pieces)), progress=False)
            reading += time.perf_counter() - started
            pieces.append(piece)
            progress(session.tokens, length)
        keys = [key for piece in pieces for key in piece.keys]
        asked = [
            keys[i]
            for i in rng.choice(len(keys), size=min(task.questions, len(keys)), replace=False)
        ]
        started = time.perf_counter()
        answers = _ask(session, asked)
        seconds = time.perf_counter() - started
        # not timed: naming what was looked at scans the memory once more
        looks = tuple(
            _look(key, _first_look(own), pieces) for key, own in zip(asked, answers, strict=True)
        )
        yield PasskeyResult(
            tokens=length,
            tokens_read=session.tokens,
            keys=len(keys),
            questions=len(asked),
            accuracy=exact_match(asked, answers),
            accuracy_without_memory=exact_match(asked, _ask(Session(model, tokenizer), asked)),
            looked_at_answer=sum(look.is_right for look in looks) / len(looks),
            looks=looks,
            reading_tokens_per_second=(session.tokens - before) / max(reading, 1e-9),
            seconds_per_answer=seconds / len(asked),
            memory_bytes=session.nbytes,
        )


def exact_match(keys: Sequence[PlantedKey], answers: Sequence[Answer]) -> float:
    """Share of answers that are exactly the five digits of their key."""
    right = [answer.text[:DIGITS] == key.digits for key, answer in zip(keys, answers, strict=True)]
    return sum(right) / len(right)


def _haystack(tokenizer: Any, task: PasskeyTask, words: Sequence[str], window: int) -> Haystack:
    if task.file is None:
        lines = standard_library_lines(tokenizer, task.seed)
    else:
        lines = repeated_file_lines(task.file, tokenizer)
    return Haystack(lines, tokenizer, words, window=window, seed=task.seed)


def _next_pieces(haystack: Haystack, tokens: int, keys: int | None) -> Iterator[Piece]:
    """Pieces of at least `tokens` tokens together, which share the new keys evenly."""
    parts = max(1, -(-tokens // PIECE_TOKENS))
    for part in range(parts):
        share = None if keys is None else keys * (part + 1) // parts - keys * part // parts
        piece = haystack.piece(min(tokens, PIECE_TOKENS), keys=share)
        tokens -= piece.tokens
        yield piece
        if tokens <= 0:
            return


def _ask(session: Session, keys: Sequence[PlantedKey]) -> list[Answer]:
    return session.ask([key.question for key in keys], DIGITS)


def _first_look(answer: Answer) -> Sequence[Span]:
    """Where the model looked for the first digit, which decides on a key."""
    looked = replace(answer, token_ids=answer.token_ids[:1]).looked
    return looked[0] if looked else ()


def _look(key: PlantedKey, spans: Sequence[Span], pieces: Sequence[Piece]) -> Look:
    if not spans:
        return Look(key, None, 0.0, "nowhere")
    piece = pieces[int(spans[0].document)]
    inside = [other for other in piece.keys if other.span[0] <= spans[0].start < other.span[1]]
    found = inside[0] if inside else None
    place = piece.place(spans[0].start) if found is None else f"{found.file}:{found.line}"
    return Look(key, found, spans[0].weight, place)
