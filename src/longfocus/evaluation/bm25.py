"""Retrieval by BM25: the chunks of a text that share rare words with a question (package `bm25s`).

A chunk is whole lines of up to so many tokens. Words are runs of letters and runs of digits in lower case; names of
code are split where a word of them ends, so that `window_parser`, `windowParser` and "window parser" are the same two
words. There are no stop words and no stems.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import extra

_WORD = re.compile(r"[^\W\d_]+|\d+")
_INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words_of(text: str) -> list[str]:
    """The words of a text as BM25 compares them."""
    return [part.casefold() for word in _WORD.findall(text) for part in _INSIDE.split(word) if part]


def chunks_of(ids: Int[Tensor, " tokens"], size: int, tokenizer: Any) -> list[Tensor]:
    """Pieces of at most `size` tokens, cut where lines begin; a longer line is cut where it must be."""
    begins = line_begins(ids, tokenizer)
    found, start = [], 0
    while start < len(ids):
        end = start + size
        if end < len(ids):
            # the last line that begins behind the start and not behind the end
            last = int(np.searchsorted(begins, end, side="right")) - 1
            end = int(begins[last]) if last >= 0 and begins[last] > start else end
        found.append(ids[start:end])
        start = end
    return found


def line_begins(ids: Tensor, tokenizer: Any) -> np.ndarray:
    """Places of tokens that begin with a line break, or stand behind one that ends with it."""
    tokens, places = np.unique(ids.numpy(), return_inverse=True)
    texts = [tokenizer.decode([token]) for token in tokens.tolist()]
    is_before = np.array([text.startswith("\n") for text in texts], dtype=bool)[places]
    ends = [text.endswith("\n") and not text.startswith("\n") for text in texts]
    is_behind = np.array(ends, dtype=bool)[places]
    return np.flatnonzero(is_before | np.concatenate([[False], is_behind[:-1]]))


class Index:
    """The chunks of one text. Raises LongFocusError if `bm25s` is not installed."""

    def __init__(self, ids: Int[Tensor, " tokens"], chunk: int, tokenizer: Any) -> None:
        with extra("bm25", "Retrieval by BM25"):
            import bm25s
        self.chunks = chunks_of(ids, chunk, tokenizer)
        self.texts = [tokenizer.decode(own.tolist()) for own in self.chunks]
        self._break = torch.tensor(tokenizer("\n", add_special_tokens=False)["input_ids"])
        self._bm25 = bm25s.BM25()
        # a chunk without words has one that nobody asks for
        self._bm25.index([words_of(text) or [""] for text in self.texts], show_progress=False)

    @property
    def nbytes(self) -> int:
        """Of the index and of what it gives out: text and token ids."""
        scores: Any = self._bm25.scores
        index = sum(scores[name].nbytes for name in ("data", "indices", "indptr"))
        words = sum(len(word.encode()) for word in self._bm25.vocab_dict if isinstance(word, str))
        texts = sum(len(text.encode()) for text in self.texts)
        return index + words + texts + sum(own.nbytes for own in self.chunks)

    def ranked(self, query: str) -> list[int]:
        """Numbers of all chunks, best first; of equal ones, those without any word of the query say, the later."""
        words = [word for word in words_of(query) if word in self._bm25.vocab_dict]
        scores = self._bm25.get_scores(words) if words else np.zeros(len(self.chunks))
        return np.lexsort((-np.arange(len(scores)), -scores)).tolist()

    def best(self, query: str, room: int) -> Int[Tensor, " tokens"]:
        """The best chunks that fill so many tokens, in the order of the text; the last one chosen is cut."""
        chosen: dict[int, Tensor] = {}
        for number in self.ranked(query):
            if room <= 0:
                break
            chosen[number] = self._on_its_own_line(number)[:room]
            room -= len(chosen[number])
        return together([chosen[number] for number in sorted(chosen)])

    def _on_its_own_line(self, number: int) -> Tensor:
        """A chunk that may stand behind any other."""
        own = self.chunks[number]
        return own if self.texts[number].startswith("\n") else together([self._break, own])


def together(parts: Sequence[Tensor]) -> Int[Tensor, " tokens"]:
    """Token ids one behind the other; none of none."""
    return torch.cat([torch.empty(0, dtype=torch.long), *parts])
