"""Lines hidden at given places of real text, as token ids: the text that several methods are asked about.

    real text ---- hidden line ---- real text -------- hidden line ---- real text

The real text between two hidden lines is tokenised as a whole, a hidden line by itself, so that it is known where it
stands: no hidden line crosses the border of a window.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.evaluation.source_lines import (
    Lines,
    SourceLine,
    file_lines,
    standard_library_lines,
)
from longfocus.inference.texts.folder import files_under
from longfocus.inference.texts.text_file import looks_binary

MOST_HIDDEN = 0.5
"""Share of a text that hidden lines may be."""


class HiddenLine(NamedTuple):
    """A line, and the share of the text before which it should not stand."""

    place: float
    text: str


def lines_under(paths: Sequence[Path], tokenizer: Any, seed: int) -> Lines:
    """Lines without end of text files and folders, or of the standard library's source code if there are none.

    The order of the files is drawn. Raises LongFocusError if there is no text in them.
    """
    if not paths:
        return standard_library_lines(tokenizer, seed)
    files = [
        file
        for path in paths
        for file in (files_under(path) if path.is_dir() else [path])
        if not looks_binary(file)
    ]
    order = np.random.default_rng(seed).permutation(len(files))

    def text() -> Iterator[SourceLine]:
        has_text = False
        for place in order:
            for line in file_lines(files[place], tokenizer, files[place].name):
                has_text = True
                yield line
        if not has_text:
            raise LongFocusError(
                f"There is no text in {', '.join(map(str, paths))}. Give text files that have some lines, or folders "
                "of them."
            )

    return Lines(text)


def hidden_in(
    lines: Iterator[SourceLine],
    hidden: Sequence[HiddenLine],
    tokens: int,
    window: int,
    tokenizer: Any,
) -> Int[Tensor, " tokens"]:
    """Exactly so many tokens, or up to two windows more if lines at the very end need them.

    Raises LongFocusError for hidden lines that do not fit in a window of so many tokens, or that leave little else.
    """
    own = [ids_of(f"\n{line.text}", tokenizer) for line in hidden]
    _check(own, tokens, window)
    text = _Text(lines, tokenizer)
    for place in sorted(range(len(hidden)), key=lambda place: hidden[place].place):
        text.fill(int(hidden[place].place * tokens))
        while text.count % window + len(own[place]) > window:
            text.fill(text.count + 1)
        text.add(own[place])
    last_line_ends = text.count
    text.fill(tokens)
    return torch.tensor(text.ids[: max(tokens, last_line_ends)])


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Token ids, without those that a tokenizer puts around a text."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _check(own: Sequence[Sequence[int]], tokens: int, window: int) -> None:
    longest = max(map(len, own), default=0)
    if longest > window:
        raise LongFocusError(
            f"A line to be hidden has {longest} tokens, which does not fit in a window of {window}. Use a model with "
            "longer windows."
        )
    fewer = "Ask fewer --questions, hide fewer --entities and --distractors"
    refuse_crowded(sum(map(len, own)), tokens, fewer)


def refuse_crowded(hidden: int, tokens: int, fewer: str) -> None:
    """Raise LongFocusError for hidden lines of so many tokens that they leave little else of a text."""
    if hidden > MOST_HIDDEN * tokens:
        raise LongFocusError(
            f"The lines to be hidden have {hidden:,} tokens, and may be half of the {tokens:,} of --tokens. {fewer}, "
            "or give longer --tokens."
        )


class _Text:
    """Grows by lines of real text and by hidden ones."""

    def __init__(self, lines: Iterator[SourceLine], tokenizer: Any) -> None:
        self.lines, self.tokenizer = lines, tokenizer
        self.ids: list[int] = []

    @property
    def count(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def fill(self, until: int) -> None:
        """Real text up to so many tokens or a part of a line more."""
        while self.count < until:
            missing, waiting = until - self.count, []
            # counted line by line; another tokenizer may join what stands in two lines
            while missing > 0:
                line = next(self.lines)
                waiting.append(f"\n{line.text}")
                missing -= line.tokens
            self.add(ids_of("".join(waiting), self.tokenizer))
