"""Where a window begins in the caller's numbering, and keys as at its first position."""

import pytest
import torch
from torch import Tensor

from longfocus.core.positions import Origin, at_first_position, find_origin

WINDOW = 8


def origin(
    positions: list[list[int]], real: list[list[int]] | None = None, earlier: Origin | None = None
) -> tuple[list[int], list[bool]]:
    is_real = None if real is None else torch.tensor(real).bool()
    found = find_origin(torch.tensor(positions), is_real, WINDOW, earlier)
    assert found.position.shape == found.is_placed.shape == (len(positions), 1)
    return found.position[:, 0].tolist(), found.is_placed[:, 0].tolist()


def placed(*positions: int, is_placed: bool = True) -> Origin:
    return Origin(torch.tensor(positions)[:, None], torch.full((len(positions), 1), is_placed))


def test_without_padding_a_window_begins_at_its_smallest_position() -> None:
    assert origin([[5, 6, 7], [0, 1, 2]]) == ([5, 0], [True, True])
    assert origin([[7, 5, 6]]) == ([5], [True])
    assert origin([[5, 6, 7]], real=[[1, 1, 1]]) == ([5], [True])


def test_padding_counts_as_published() -> None:
    # cumsum(mask) - 1 is -1 on left padding: padding stands at offset 0, the first real token at 1
    assert origin([[-1, -1, 0, 1]], real=[[0, 0, 1, 1]]) == ([-1], [True])
    # padding on the right, after the real tokens
    assert origin([[0, 1, 1, 1]], real=[[1, 1, 0, 0]]) == ([0], [True])


def test_filler_a_window_or_more_below_the_real_tokens_does_not_count() -> None:
    assert origin([[0, 0, 100, 101]], real=[[0, 0, 1, 1]]) == ([100], [True])
    assert origin([[92, 93, 100, 101]], real=[[0, 0, 1, 1]]) == ([93], [True])


def test_every_row_has_its_own_beginning() -> None:
    positions = [[0, 0, 50, 51], [3, 4, 5, 6], [-1, 0, 1, 2]]
    real = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
    assert origin(positions, real) == ([50, 3, -1], [True, True, True])


def test_a_row_of_padding_is_placed_by_its_first_real_token() -> None:
    assert origin([[0, 0], [4, 5]], real=[[0, 0], [1, 1]]) == ([0, 4], [False, True])
    waiting = placed(0, is_placed=False)
    assert origin([[30, 31]], real=[[1, 1]], earlier=waiting) == ([30], [True])
    assert origin([[0, 0]], real=[[0, 0]], earlier=waiting) == ([0], [False])
    # padding close before the first real token counts, also when it came earlier
    near = placed(-1, is_placed=False)
    assert origin([[0, 1]], real=[[1, 1]], earlier=near) == ([-1], [True])


def test_a_placed_row_stays_where_it_is() -> None:
    assert origin([[9, 10]], earlier=placed(5)) == ([5], [True])
    assert origin([[2, 3]], earlier=placed(5)) == ([5], [True])
    assert origin([[2, 3]], real=[[1, 1]], earlier=placed(5)) == ([5], [True])


def test_a_window_read_in_pieces_begins_where_it_does_in_one() -> None:
    positions = torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 0, 0, 0, 60, 61], [7, 8, 9, 10, 11, 12]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], [1] * 6]).bool()
    whole = find_origin(positions, real, WINDOW)
    for cut in range(1, 6):
        first = find_origin(positions[:, :cut], real[:, :cut], WINDOW)
        both = find_origin(positions[:, cut:], real[:, cut:], WINDOW, first)
        assert both.position.equal(whole.position)
        assert both.is_placed.equal(whole.is_placed)


def rotated(key: Tensor, position: int, rotary_dim: int, scaling: float) -> Tensor:
    """Half-split rotary encoding of the first components, as Llama has it."""
    half = rotary_dim // 2
    angle = position * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = (scaling * torch.cat([t, t]) for t in (angle.cos(), angle.sin()))
    part, rest = key[..., :rotary_dim], key[..., rotary_dim:]
    turned = torch.cat([-part[..., half:], part[..., :half]], -1)
    return torch.cat([part * cos + turned * sin, rest], -1)


@pytest.mark.parametrize("scaling", [1.0, 1.139])
@pytest.mark.parametrize("rotary_dim", [12, 6])
def test_keys_at_the_first_position_are_those_that_rotary_encoding_gives_there(
    rotary_dim: int, scaling: float
) -> None:
    key = torch.randn(2, 3, 5, 12)
    expected = rotated(key, 0, rotary_dim, scaling)
    found = at_first_position(key, rotary_dim, scaling)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (rotated(key, 1, rotary_dim, scaling) - found).abs().max() > 0.5


def test_without_scaling_keys_at_the_first_position_are_not_copied() -> None:
    key = torch.randn(2, 3, 5, 12)
    assert at_first_position(key, 12, 1.0) is key
