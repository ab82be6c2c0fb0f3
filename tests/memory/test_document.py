"""A document memory knows which characters and which line each of its tokens came from."""

import pytest
import torch

from longfocus import DocumentMemory
from longfocus.memory import Part
from longfocus.memory.description import ReadWith

TEXT = "ab\nçd 🦉\n\nend"
OFFSETS = [(0, 2), (2, 3), (3, 4), (4, 5), (6, 7), (6, 7), (7, 9), (9, 12)]


def document(**changes: object) -> DocumentMemory:
    key, value = torch.randn(2, 1, 3, len(OFFSETS), 4).unbind(0)
    given = {
        "name": "owl",
        "layers": {1: Part(key, value), 2: Part(key.bfloat16(), value.bfloat16())},
        "token_ids": torch.arange(len(OFFSETS)),
        "read_with": ReadWith("window_start", 8),
        "text": TEXT,
        "offsets": torch.tensor(OFFSETS),
    }
    return DocumentMemory.of(**{**given, **changes})


def test_every_token_has_its_characters_and_its_line() -> None:
    found = document()
    assert [found.span(token) for token in range(found.tokens)] == OFFSETS
    assert [TEXT[slice(*found.span(token))] for token in (0, 2, 4, 5, 7)] == [
        "ab",
        "ç",
        "🦉",
        "🦉",
        "end",
    ]
    assert [found.line(token) for token in range(found.tokens)] == [1, 1, 2, 2, 2, 2, 2, 4]


def test_size_is_counted_in_tokens_and_in_bytes_of_keys_and_values() -> None:
    assert document().tokens == 8
    assert document().nbytes == 3 * 8 * 4 * (4 + 4 + 2 + 2)


def test_a_document_of_bare_token_ids_has_no_characters() -> None:
    with pytest.raises(ValueError, match="'owl' was read from token ids"):
        document(text=None, offsets=None).span(0)


def test_a_document_is_not_changed() -> None:
    with pytest.raises(AttributeError):
        document().name = "other"
