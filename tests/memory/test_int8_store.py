"""A growing memory of int8 pairs: what is appended comes back up to half a step of its scale."""

import pytest
import torch
from torch import Tensor

from longfocus.core import reference
from longfocus.memory import Part, Store, dense
from longfocus.memory.clustered import Clustered
from longfocus.memory.quantized import quantize
from longfocus.memory.sorting import in_order

INT8 = torch.int8


def pairs(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(rows, 2, tokens, 8) for _ in range(2))
    return key, value


def rounded(given: Tensor) -> Tensor:
    steps, scale = quantize(given)
    return steps.float() * scale[..., None]


def numbers(part: Part) -> tuple[Tensor, Tensor]:
    part = in_order(part)
    rows = list(part.rows or (0,))
    size = len(part)
    return part.keys(0, size, torch.float32)[rows], part.values(0, size, torch.float32)[rows]


@pytest.mark.parametrize("is_clustered", [False, True])
def test_pairs_come_back_as_their_scales_allow(
    is_clustered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 32)
    store = Store(INT8, is_clustered=is_clustered)
    given = [pairs(3, tokens) for tokens in (20, 1, 30, 17, 40)]
    for key, value in given:
        store.append(key, value)
    found = [numbers(part) for part in store.parts()]
    for place in range(2):
        expected = torch.cat([rounded(both[place]) for both in given], 2)
        assert torch.cat([both[place] for both in found], 2).equal(expected)
    bytes_per_pair = 3 * 2 * 2 * (8 + 4)
    assert store.nbytes() == 108 * bytes_per_pair


def test_dense_and_clustered_search_multiply_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 32)
    store = Store(INT8, is_clustered=True)
    key, value = pairs(2, 100)
    store.append(key, value)
    store.append(*pairs(2, 0))
    assert any(part.clusters is not None for part in store.parts())
    query = torch.randn(2, 4, 5, 8)
    wide = [t.repeat_interleave(2, 1) for t in (rounded(key), rounded(value))]
    output, lse = reference.attention(query, *wide, scale=0.7)
    for search in (dense, Clustered()):
        found = search(query, store.parts(), scale=0.7)
        torch.testing.assert_close(found.output, output, atol=2e-5, rtol=0)
        torch.testing.assert_close(found.lse, lse, atol=2e-5, rtol=0)


def test_forks_undone_appends_and_rows_that_share_lines_keep_their_scales() -> None:
    store = Store(INT8)
    first, second = pairs(2, 9), pairs(2, 5)
    store.append(*first, lines=(0, 0))
    fork = store.fork()
    store.append(*second)
    fork.append(*pairs(2, 3))
    fork.undo_append()
    store.select([1, 0])
    assert len(fork) == 9
    (own,) = fork.parts()
    assert own.keys(0, 9, torch.float32)[0].equal(rounded(first[0])[0])
    shared, last = store.parts()
    assert shared.key.shape[0] == 1
    assert numbers(last)[1].equal(rounded(second[1])[[1, 0]])


def test_padding_and_vectors_of_zeros_stay_zero() -> None:
    store = Store(INT8)
    key, value = pairs(1, 6)
    key[:, :, 2] = 0
    key[:, :, 4] = torch.nan
    valid = torch.tensor([[True, True, True, True, False, True]])
    store.append(key, value, valid)
    (part,) = store.parts()
    read = part.keys(0, 6, torch.float32)
    assert (read[:, :, [2, 4]] == 0).all()
    assert read[:, :, 3].equal(rounded(key)[:, :, 3])
