"""How a stream of tokens is cut into windows, and when a window leaves for the memory.

`split="longllama"`, the published rules (golden/README.md): all but the last `kept` tokens of a prompt are cut
into windows; while decoding, the whole window leaves as soon as the next tokens do not fit.

    prompt  |-- window --|-- window --|- rest -|-- kept --|        (rest may be short)
              to memory    to memory   to memory  stays

`split="when_needed"`: the same cut, but only for a prompt that does not fit; while decoding, a window is filled
to its last token before it leaves, so that the moment does not depend on how many tokens come at a time.
"""

from itertools import pairwise
from typing import NamedTuple

from longfocus.config import Split


class Piece(NamedTuple):
    """Tokens [start, stop) of a call, computed in one go."""

    start: int
    stop: int
    evict_before: bool = False
    """The window so far goes to the memory before these tokens are computed."""
    evict_after: bool = False
    """These tokens, and what stands before them in the window, go to the memory after it."""


def cut(
    tokens: int,
    *,
    local: int,
    window: int,
    kept: int,
    split: Split,
    prompt: int | None = None,
    stay: bool = True,
) -> list[Piece]:
    """Cut `tokens` new tokens behind `local` ones that already stand in the window.

    `prompt` of the new tokens are given text, the others a decoder's guesses (None: all are given). `stay` false:
    nothing stays in the window at the end.
    """
    prompt = tokens if prompt is None else prompt
    if split == "longllama":
        pieces = _published(tokens, local, window, kept)
    else:
        pieces = _when_needed(tokens, local, window, min(kept, window), prompt)
    return pieces if stay else _leave(pieces)


def _published(tokens: int, local: int, window: int, kept: int) -> list[Piece]:
    body = max(tokens - kept, 0)
    edges = [*range(0, body, window), body, tokens]
    spans = [(start, stop) for start, stop in pairwise(edges) if start < stop]
    if local == 0:
        return [Piece(start, stop, evict_after=stop < tokens) for start, stop in spans]
    pieces = []
    for start, stop in spans:
        leaves = local + stop - start > window
        pieces.append(Piece(start, stop, evict_before=leaves and local > 0))
        local = stop - start if leaves else local + stop - start
    return pieces


def _when_needed(tokens: int, local: int, window: int, kept: int, prompt: int) -> list[Piece]:
    if local + prompt <= window:
        return _fill(0, tokens, local, window)
    body = max(prompt - kept, 0)
    pieces = _fill(0, body, local, window)
    if pieces:
        # a full window leaves at once, not when the next tokens come: nothing is to follow it there
        ends = [piece._replace(evict_before=False, evict_after=True) for piece in pieces]
        pieces = [ends[0]._replace(evict_before=pieces[0].evict_before), *ends[1:]]
        return pieces + _fill(body, tokens, 0, window)
    rest = _fill(0, tokens, 0, window)
    return [rest[0]._replace(evict_before=local > 0), *rest[1:]]


def _fill(start: int, stop: int, local: int, window: int) -> list[Piece]:
    """Fill the window to its last token; a full one leaves when the next token comes."""
    pieces = []
    while start < stop:
        is_full = local >= window
        local = 0 if is_full else local
        end = min(stop, start + window - local)
        pieces.append(Piece(start, end, evict_before=is_full))
        local += end - start
        start = end
    return pieces


def _leave(pieces: list[Piece]) -> list[Piece]:
    return [*pieces[:-1], pieces[-1]._replace(evict_after=True)] if pieces else pieces
