"""Conversations with the small model, for the tests of sessions."""

from typing import Any

import pytest

from long import mostly_long
from longfocus import Session
from small import TEXT, WINDOW, byte_tokenizer, small_model

LONG = 3 * WINDOW
SAID = ["Who has it?", "The owl, or the eleven others?", "!", "And now something longer. " * 3]
every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 2)], (0, 2)), ids=str)
every_positions = pytest.mark.parametrize(
    "positions", mostly_long(["window_start", "none", "true"], "window_start")
)


def chatting(layers: tuple[int, ...] = (0, 2), **settings: Any) -> Session:
    """A session with the chat template; with documents, except where positions allow none."""
    made = Session(small_model(layers, **settings), byte_tokenizer(chat=True))
    if settings.get("positions") != "true":
        made.read(TEXT, "told")
    return made


def talk(own: Session, said: list[str] = SAID, tokens: int = LONG) -> list[tuple[int, ...]]:
    return [own.chat(text, tokens).token_ids for text in said]
