"""What an answer's page is made from: plain data, checked once."""

import math
from dataclasses import dataclass

import numpy as np

from longfocus.errors import LongFocusError
from longfocus.inference.page.heat import FloatArray, IntArray


@dataclass(frozen=True)
class Looked:
    """Characters that one token of the answer looked at."""

    document: int
    """Place in `AnswerPage.documents`."""
    start: int
    end: int
    """Past the last character."""
    weight: float
    """Share of the token's attention."""


@dataclass(frozen=True)
class AnswerToken:
    """A piece of the answer's text."""

    text: str
    looked: tuple[Looked, ...] = ()


@dataclass(frozen=True, eq=False)
class PageDocument:
    """A text that the model had in memory, and the attention that its memory tokens received."""

    name: str
    text: str
    starts: IntArray
    """First character of every memory token, `[tokens]`."""
    ends: IntArray
    """Past the last character, `[tokens]`."""
    heat: FloatArray
    """Share of the attention, mean over the answer's tokens, `[tokens]`."""

    def __post_init__(self) -> None:
        starts, ends, heat = self.starts, self.ends, self.heat
        if not starts.shape == ends.shape == heat.shape == (starts.size,):
            raise LongFocusError(
                f"Every token of {self.name!r} needs a start, an end and a heat. "
                f"Got shapes {starts.shape}, {ends.shape} and {heat.shape}. Give three of [tokens]."
            )
        if np.any(starts < 0) or np.any(starts > ends) or np.any(ends > len(self.text)):
            raise LongFocusError(
                f"A token of {self.name!r} ends before it starts or lies outside the text of "
                f"{len(self.text)} characters. Give offsets that count this text's characters from 0."
            )
        if not np.all(np.isfinite(heat)) or np.any(heat < 0):
            raise LongFocusError(
                f"A token of {self.name!r} has a heat that is no share of attention: "
                "negative or not finite. Give values from 0."
            )


@dataclass(frozen=True)
class AnswerPage:
    """What a page shows."""

    title: str
    question: str
    answer_tokens: tuple[AnswerToken, ...]
    documents: tuple[PageDocument, ...]
    note: str = ""
    """Stands under the title: the model, the date, whatever the reader should know."""

    def __post_init__(self) -> None:
        for looked in (looked for token in self.answer_tokens for looked in token.looked):
            if not 0 <= looked.document < len(self.documents):
                raise LongFocusError(
                    f"A token of the answer looked at document {looked.document}, but the page has "
                    f"{len(self.documents)}, counted from 0. Give the place in `documents`."
                )
            document = self.documents[looked.document]
            if not 0 <= looked.start <= looked.end <= len(document.text):
                raise LongFocusError(
                    f"A token of the answer looked at characters {looked.start} to {looked.end} of "
                    f"{document.name!r}, which has {len(document.text)}. Give offsets that count its characters from 0."
                )
            if not 0 <= looked.weight < math.inf:
                raise LongFocusError(
                    f"A token of the answer looked with weight {looked.weight}, which is no share of attention. "
                    "Give values from 0."
                )
