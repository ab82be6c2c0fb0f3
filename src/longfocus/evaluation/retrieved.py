"""What the tokens of a text retrieve from its beginning: queries, keys, and the text around both.

text      |-- part -- part -- ... --|-- windows that look --|
in memory  as documents              each fresh, sees all documents
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Record
from longfocus.evaluation.passkey import PIECE_TOKENS
from longfocus.evaluation.source_lines import SourceLine, file_lines, standard_library_lines
from longfocus.evaluation.subject import Subject
from longfocus.inference.answer import Answer, Asked, Retrieved
from longfocus.inference.session import Session

CONTEXT_CHARACTERS = 40
"""On both sides of a token in a record."""
_WORD = re.compile(r"\w+")


class Text:
    """Lines of the standard library in an order drawn from the seed, or of a file from a place drawn from it."""

    def __init__(self, subject: Subject, file: Path | None, seed: int, tokens: int) -> None:
        self.file = file
        self.lines: Iterator[SourceLine]
        if file is None:
            self.lines = standard_library_lines(subject.tokenizer, seed)
        else:
            found = list(file_lines(file, subject.tokenizer, file.name))
            # so that as many tokens as will be read stand behind the first line, and a line more for each part
            parts = -(-tokens // PIECE_TOKENS) + 1
            overshoot = parts * max((line.tokens for line in found), default=0)
            spare = max(sum(line.tokens for line in found) - tokens - overshoot, 0)
            left_out = np.random.default_rng(seed).integers(spare + 1)
            ends = np.cumsum([line.tokens for line in found])
            self.lines = iter(found[int(ends.searchsorted(left_out, "right")) :])

    def parts(self, tokens: int) -> Iterator[str]:
        """The next so many tokens, or a line more, in parts that are read at once."""
        while tokens > 0:
            text, count = self._next(min(tokens, PIECE_TOKENS))
            tokens -= count
            yield text

    def behind(self, queries: int) -> str:
        """The text that follows, of more tokens than that."""
        return self._next(queries + 1)[0]

    def _next(self, tokens: int) -> tuple[str, int]:
        found, count = [], 0
        for line in self.lines:
            found.append("\n" + line.text)
            count += line.tokens
            if count >= tokens:
                return "".join(found), count
        raise LongFocusError(
            f"--file {self.file} is too short: it ends before --tokens of it are read and --queries have looked. Give "
            "a longer text, or fewer --tokens or --queries."
        )


def looks(subject: Subject, session: Session, text: str, queries: int) -> Iterator[Record]:
    """A record for each of the first `queries` tokens of a text and each memory layer."""
    given = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = given["input_ids"], given["offset_mapping"]
    counts: Counter[int] = Counter()
    for document in session.documents:
        counts.update(document.token_ids.tolist())
    total = max(sum(counts.values()), 1)
    # the last token of a window is predicted, and looks nowhere
    step = subject.window - 1
    for start in range(0, min(queries, len(ids) - 1), step):
        own = ids[start : min(start + step, queries) + 1]
        answer = _as_answered(subject.model, session, own)
        sources = [document.text or "" for document in answer.documents]
        for place, spans_of in enumerate(answer.looked, start):
            by_chance = counts[ids[place]] / total
            query = _Query(text, spans[place], spans[place + 1])
            for key in _best_of_layers(spans_of):
                record = query.record(key, sources[key.number])
                yield {"query": place, **record, "same_token_by_chance": by_chance}


def _as_answered(model: Any, session: Session, ids: list[int]) -> Answer:
    """The tokens behind the first one as an answer that is looked at again: where each one's predecessor looked."""
    return Answer("", tuple(ids[1:]), Asked(model, session.cache, tuple(ids[:1]), {}))


def _best_of_layers(found: tuple[Retrieved, ...]) -> list[Retrieved]:
    """The heaviest key of every layer; they come heaviest first."""
    best: dict[int, Retrieved] = {}
    for key in found:
        best.setdefault(key.layer, key)
    return [best[layer] for layer in sorted(best)]


class _Query:
    """A token that looks, with the text around it."""

    def __init__(self, text: str, span: tuple[int, int], following: tuple[int, int]) -> None:
        self.text, self.span = text, span
        self.token, self.next = text[slice(*span)], text[slice(*following)]
        self.word = word_at(text, span)

    def record(self, key: Retrieved, source: str) -> Record:
        """What it found in a document."""
        where = (key.start, key.end)
        return {
            "layer": key.layer,
            "token": self.token,
            "context": around(self.text, self.span),
            "next": self.next,
            "retrieved": key.text,
            "retrieved_context": around(source, where),
            "document": key.document,
            "line": key.line,
            "knn_score": key.knn_score,
            "focus_score": key.focus_score,
            "is_in_word": self.word is not None,
            "is_same_token": key.text == self.token,
            "is_same_word": self.word is not None and word_at(source, where) == self.word,
            "is_next_token": source.startswith(self.next, key.end),
        }


def around(text: str, span: tuple[int, int]) -> list[str]:
    """The text before and behind some characters."""
    start, end = span
    return [text[max(start - CONTEXT_CHARACTERS, 0) : start], text[end : end + CONTEXT_CHARACTERS]]


def word_at(text: str, span: tuple[int, int]) -> str | None:
    """The word, of two characters or more, that some characters belong to or end with."""
    start, end = span
    first = max(start - CONTEXT_CHARACTERS, 0)
    for found in _WORD.finditer(text, first, end + CONTEXT_CHARACTERS):
        if found.start() < end <= found.end() and found.end() > start:
            return found[0] if len(found[0]) > 1 else None
    return None
