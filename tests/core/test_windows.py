"""How tokens are cut into windows: the published rules by hand, and what both rules keep whatever comes."""

from collections.abc import Iterator
from itertools import product

import pytest

from longfocus.config import Split
from longfocus.core.windows import Piece, cut

WINDOW, KEPT = 8, 3
SPLITS: tuple[Split, ...] = ("longllama", "when_needed")


def short(pieces: list[Piece]) -> list[str]:
    """`|0-8|`: tokens 0 to 7; a bar where the window leaves before or after them."""
    return [f"{'|' * p.evict_before}{p.start}-{p.stop}{'|' * p.evict_after}" for p in pieces]


def published(tokens: int, local: int = 0, kept: int = KEPT) -> list[str]:
    return short(cut(tokens, local=local, window=WINDOW, kept=kept, split="longllama"))


def when_needed(
    tokens: int, local: int = 0, kept: int = KEPT, prompt: int | None = None
) -> list[str]:
    return short(
        cut(tokens, local=local, window=WINDOW, kept=kept, split="when_needed", prompt=prompt)
    )


def test_published_rules_cut_all_but_the_last_tokens_from_the_left() -> None:
    assert published(27) == ["0-8|", "8-16|", "16-24|", "24-27"]
    assert published(12) == ["0-8|", "8-9|", "9-12"]
    # also a prompt that would fit the window
    assert published(7) == ["0-4|", "4-7"]
    assert published(4) == ["0-1|", "1-4"]


def test_published_rules_leave_a_prompt_of_the_kept_length_whole_however_long_it_is() -> None:
    assert published(3) == ["0-3"]
    assert published(1) == ["0-1"]
    assert published(20, kept=20) == ["0-20"]
    assert published(20, kept=99) == ["0-20"]


def test_published_rules_evict_the_whole_window_when_the_next_tokens_do_not_fit() -> None:
    assert published(1, local=7) == ["0-1"]
    assert published(1, local=8) == ["|0-1"]
    assert published(3, local=5) == ["0-3"]
    assert published(3, local=6) == ["|0-3"]
    # a prompt behind a window: every piece leaves as soon as the next one does not fit
    assert published(5, local=6) == ["0-2", "|2-5"]
    assert published(13, local=1) == ["|0-8", "|8-10", "10-13"]
    # a kept context longer than the window leaves with the next token
    assert published(1, local=20) == ["|0-1"]


def test_when_needed_leaves_a_prompt_that_fits_whole() -> None:
    assert when_needed(8) == ["0-8"]
    assert when_needed(1) == ["0-1"]
    assert when_needed(3, local=5) == ["0-3"]


def test_when_needed_cuts_a_longer_prompt_like_the_published_rules() -> None:
    assert when_needed(9) == ["0-6|", "6-9"]
    assert when_needed(27) == ["0-8|", "8-16|", "16-24|", "24-27"]
    assert when_needed(12) == ["0-8|", "8-9|", "9-12"]


def test_when_needed_never_keeps_more_than_a_window() -> None:
    assert when_needed(12, kept=20) == ["0-4|", "4-12"]


def test_when_needed_first_fills_the_window_that_a_long_prompt_finds() -> None:
    assert when_needed(13, local=3) == ["0-5|", "5-10|", "10-13"]
    # a full window has no room left
    assert when_needed(13, local=8) == ["|0-8|", "8-10|", "10-13"]
    # a prompt that is kept entirely, but does not fit behind the window, gets a new one
    assert when_needed(3, local=6) == ["|0-3"]


def test_when_needed_fills_a_window_to_its_last_token_while_decoding() -> None:
    assert when_needed(1, local=7) == ["0-1"]
    assert when_needed(1, local=8) == ["|0-1"]
    # one given token and five guesses
    assert when_needed(6, local=5, prompt=1) == ["0-3", "|3-6"]
    assert when_needed(6, local=8, prompt=1) == ["|0-6"]
    # guesses behind a prompt do not count towards what is kept
    assert when_needed(11, prompt=9) == ["0-6|", "6-11"]
    assert when_needed(16, prompt=9) == ["0-6|", "6-14", "|14-16"]


@pytest.mark.parametrize("split", SPLITS)
def test_when_nothing_stays_the_last_tokens_leave_too(split: Split) -> None:
    for tokens in (1, 3, 8, 9, 30):
        stays = cut(tokens, local=0, window=WINDOW, kept=KEPT, split=split)
        leaves = cut(tokens, local=0, window=WINDOW, kept=KEPT, split=split, stay=False)
        assert leaves == [*stays[:-1], stays[-1]._replace(evict_after=True)]
        assert not stays[-1].evict_after


def calls() -> Iterator[tuple[int, int, int, int]]:
    """tokens, local, kept, prompt: everything small."""
    for tokens, local, kept in product(range(1, 28), range(WINDOW + 1), (1, KEPT, WINDOW, 30)):
        for prompt in {1, (tokens + 1) // 2, tokens}:
            yield tokens, local, kept, prompt


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_cover_all_tokens_once_and_in_order(split: Split) -> None:
    for tokens, local, kept, prompt in calls():
        pieces = cut(tokens, local=local, window=WINDOW, kept=kept, split=split, prompt=prompt)
        covered = [token for piece in pieces for token in range(piece.start, piece.stop)]
        assert covered == list(range(tokens)), (tokens, local, kept, prompt)
        assert all(piece.start < piece.stop for piece in pieces)


@pytest.mark.parametrize("split", SPLITS)
def test_only_a_window_that_holds_something_leaves(split: Split) -> None:
    for tokens, local, kept, prompt in calls():
        held = local
        for piece in cut(tokens, local=local, window=WINDOW, kept=kept, split=split, prompt=prompt):
            assert held or not piece.evict_before, (tokens, local, kept, prompt)
            held = 0 if piece.evict_before else held
            held = 0 if piece.evict_after else held + piece.stop - piece.start


def test_when_needed_no_window_holds_more_than_it_may() -> None:
    for tokens, local, kept, prompt in calls():
        held = local
        for piece in cut(
            tokens, local=local, window=WINDOW, kept=kept, split="when_needed", prompt=prompt
        ):
            held = (0 if piece.evict_before else held) + piece.stop - piece.start
            assert held <= WINDOW, (tokens, local, kept, prompt)
            held = 0 if piece.evict_after else held


def window_of_each_token(chunks: list[int], local: int) -> list[int]:
    """Number of the window that every decoded token falls into; each chunk is one token and guesses."""
    number, found = 0, []
    for chunk in chunks:
        for piece in cut(
            chunk, local=local, window=WINDOW, kept=KEPT, split="when_needed", prompt=1
        ):
            number += piece.evict_before
            local = (0 if piece.evict_before else local) + piece.stop - piece.start
            found += [number] * (piece.stop - piece.start)
            assert not piece.evict_after
    return found


def test_while_decoding_windows_do_not_depend_on_how_many_tokens_come_at_a_time() -> None:
    for local in range(1, WINDOW + 1):
        one_by_one = window_of_each_token([1] * 30, local)
        for chunks in ([30], [7, 1, 22], [8] * 3 + [6], [3] * 10, [2, 9, 19], [1, 12, 1, 16]):
            assert sum(chunks) == 30
            assert window_of_each_token(chunks, local) == one_by_one
