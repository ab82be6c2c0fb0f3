"""Pass keys in real code: a model reads a haystack of growing length and is asked for keys hidden in it.

Only the public API is used: `Session.read` takes the next piece of the text into memory, `Session.ask` answers
all questions as one greedy batch. An answer is right when its five digits are exactly those of the line. The
same questions are also asked without memory: nobody can guess five digits, so that must give 0.

Here is what `longfocus evaluate passkey` (experiments/passkey.py) and the demo have in common, and the demo's walk from
length to length in one memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longfocus.evaluation.haystack import (
    DIGITS,
    HARD_KEYS_PER_WINDOW,
    Haystack,
    Piece,
    PlantedKey,
    refuse_few_words,
)
from longfocus.evaluation.hidden_lines import refuse_crowded
from longfocus.evaluation.source_lines import lines_of
from longfocus.evaluation.stream import Stream
from longfocus.evaluation.subject import Subject
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
    text_repeated: int
    """How many times the text began again, because it is shorter than what was to be read."""


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
    subject, length = Subject(model, tokenizer), 0
    subject.begin({}, lambda done, text: progress(min(done, length), length))
    with subject.session() as session:
        hidden = Hidden(subject, session, task, words)
        for length in task.lengths:
            before, read_before = session.tokens, subject.costs.reading_seconds
            hidden.read(length)
            reading = subject.costs.reading_seconds - read_before
            asked_before = subject.costs.answering_seconds
            asked = hidden.choose()
            answers = hidden.ask(asked)
            answering = subject.costs.answering_seconds - asked_before
            looks = hidden.looks(asked, answers)
            yield PasskeyResult(
                tokens=length,
                tokens_read=session.tokens,
                keys=len(hidden.keys),
                questions=len(asked),
                accuracy=exact_match(asked, answers),
                accuracy_without_memory=exact_match(asked, hidden.guess(asked)),
                looked_at_answer=sum(look.is_right for look in looks) / len(looks),
                looks=looks,
                reading_tokens_per_second=(session.tokens - before) / max(reading, 1e-9),
                seconds_per_answer=answering / len(asked),
                memory_bytes=session.nbytes,
                text_repeated=subject.costs.text_repeated,
            )


class Hidden:
    """A memory of text with pass-key lines, which is filled up to one length after another."""

    def __init__(
        self, subject: Subject, session: Session, task: PasskeyTask, words: Sequence[str]
    ) -> None:
        self.subject, self.session, self.task = subject, session, task
        self._lines = lines_of(task.file, subject.tokenizer, task.seed)
        self._haystack = Haystack(
            self._lines, subject.tokenizer, words, window=subject.window, seed=task.seed
        )
        self._rng = np.random.default_rng(task.seed + 1)
        self.pieces: list[Piece] = []

    @property
    def keys(self) -> list[PlantedKey]:
        """All that are in memory."""
        return [key for piece in self.pieces for key in piece.keys]

    def read(self, tokens: int, *, is_crowded_refused: bool = False) -> None:
        """Read on until at least `tokens` tokens are in memory.

        Raises LongFocusError before that for more keys than there are names, and for more than leave room for a text.
        """
        missing = tokens - self.session.tokens
        new = _new_keys(missing, self.task.keys, self.subject.window)
        refuse_few_words(self._haystack.words, len(self.keys) + new)
        for piece in _next_pieces(self._haystack, missing, self.task.keys):
            if is_crowded_refused and piece.keys:
                # lines of the other pieces are as long
                hidden = piece.hidden_tokens(self.subject.tokenizer) * new // len(piece.keys)
                refuse_crowded(hidden, missing, "Hide fewer --keys")
            self.subject.read(self.session, piece.text, str(len(self.pieces)))
            self.pieces.append(piece)
        self.subject.costs.text_repeated = self._lines.repeated

    def choose(self) -> list[PlantedKey]:
        """Keys to ask for, from the whole memory."""
        keys = self.keys
        count = min(self.task.questions, len(keys))
        return [keys[place] for place in self._rng.choice(len(keys), size=count, replace=False)]

    def ask(self, keys: Sequence[PlantedKey]) -> list[Answer]:
        with self.subject.answering():
            return self._ask(self.session, keys)

    def guess(self, keys: Sequence[PlantedKey]) -> list[Answer]:
        """The answers with nothing in memory."""
        with self.subject.session() as empty:
            return self._ask(empty, keys)

    def _ask(self, session: Session, keys: Sequence[PlantedKey]) -> list[Answer]:
        return session.ask(self.subject.beginnings([key.question for key in keys]), DIGITS)

    def looks(self, keys: Sequence[PlantedKey], answers: Sequence[Answer]) -> tuple[Look, ...]:
        """Where the model looked; not timed: naming it scans the memory once more. Of a stream it is not known."""
        if isinstance(self.session, Stream):
            return tuple(_look(key, (), self.pieces) for key in keys)
        return tuple(
            _look(key, _first_look(own), self.pieces)
            for key, own in zip(keys, answers, strict=True)
        )


def exact_match(keys: Sequence[PlantedKey], answers: Sequence[Answer]) -> float:
    """Share of answers that are exactly the five digits of their key."""
    right = list(map(is_right, keys, answers))
    return sum(right) / len(right)


def is_right(key: PlantedKey, answer: Answer) -> bool:
    """Whether an answer is exactly the five digits of its key."""
    return answer.text[:DIGITS] == key.digits


def _new_keys(tokens: int, keys: int | None, window: int) -> int:
    """Keys that are newly hidden in so many tokens, at most."""
    if keys is not None:
        return keys
    whole, rest = divmod(max(tokens, 0), PIECE_TOKENS)
    return HARD_KEYS_PER_WINDOW * (whole * -(-PIECE_TOKENS // window) + -(-rest // window))


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
