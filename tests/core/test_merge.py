"""Attention over a union of key sets is the merge of attentions over the sets; also with gates and sinks."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import (
    assert_same_values,
    assert_same_with_gradients,
    close,
    oracle,
    random_set,
    small_blocks,
)
from torch import Tensor

from longfocus.core.attention import Partial, attend, gate, merge, nothing, sink

SCALE = 0.4
CUTS = (0, 0, 17, 63, 64, 100)


def parts(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, cuts: tuple[int, ...] = CUTS
) -> list[Partial]:
    """Attention over each of the key sets between the cuts; some may be empty."""
    return [
        attend(
            query,
            key[:, :, start:stop],
            value[:, :, start:stop],
            scale=SCALE,
            valid=valid[:, start:stop],
        )
        for start, stop in pairwise(cuts)
    ]


def padded(keys: int = 100) -> Tensor:
    """Padding at both ends in the first row, nothing real in the second."""
    place = torch.arange(keys)
    return torch.stack([(place >= 20) & (place < 90), place < 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merged_parts_equal_attention_over_the_concatenation_with_gradients(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, keys=16)

    def ours(*inputs: Tensor) -> Partial:
        return merge(parts(*inputs, padded()))

    def theirs(*inputs: Tensor) -> Partial:
        return oracle(*inputs, scale=SCALE, valid=padded())

    inputs = random_set(dtype=dtype)
    assert_same_with_gradients(ours, theirs, inputs)
    assert_same_values(ours, theirs, inputs)


def test_the_order_of_merging_does_not_matter() -> None:
    valid = padded() | (torch.arange(100) == 50)
    found = parts(*random_set(), valid)
    expected = merge(found)
    close(merge(found[::-1]), expected, 1e-12)
    close(merge([merge(found[:2]), merge([found[2], merge(found[3:])])]), expected, 1e-12)
    one_by_one = found[0]
    for partial in found[1:]:
        one_by_one = merge([partial, one_by_one])
    close(one_by_one, expected, 1e-12)


def test_an_empty_set_changes_nothing() -> None:
    query, key, value = random_set(5, 7)
    alone = attend(query, key, value, scale=SCALE)
    for merged in ([nothing(query), alone], [alone, nothing(query)], [alone]):
        close(merge(merged), alone, 1e-14)


def test_merging_empty_sets_gives_an_empty_set_with_finite_gradients() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in random_set(5, 7))
    blind = torch.zeros(2, 7, dtype=torch.bool)
    empty = attend(query, key, value, scale=SCALE, valid=blind)
    merged = merge([empty, nothing(query), empty])
    assert merged.output.eq(0).all()
    assert merged.lse.isneginf().all()
    (merged.output.sum() + merged.lse.exp().sum()).backward()
    assert all(t.grad is not None and t.grad.eq(0).all() for t in (query, key, value))


def test_scores_far_apart_and_far_from_zero_do_not_overflow() -> None:
    query, key, value = random_set(3, 4, dtype=torch.float32)
    low, high = attend(query, key, value, scale=SCALE), attend(query, key, -value, scale=SCALE)
    distant = Partial(high.output, high.lse + 5000)
    close(merge([low, distant]), distant, 1e-12)
    shifted = [Partial(part.output, part.lse - 5000) for part in (low, high)]
    expected = merge([low, high])
    close(merge(shifted), Partial(expected.output, expected.lse - 5000), 1e-3)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_split_of_the_keys_merges_to_the_same_answer(data: st.DataObject) -> None:
    keys = data.draw(st.integers(1, 40), "keys")
    inner = data.draw(st.lists(st.integers(0, keys), max_size=4), "cuts")
    hidden = data.draw(st.sets(st.integers(0, keys - 1)), "hidden")
    valid = torch.ones(2, keys, dtype=torch.bool)
    valid[1, list(hidden)] = False
    inputs = random_set(3, keys, dim=4)
    found = parts(*inputs, valid, (0, *sorted(inner), keys))
    order = data.draw(st.permutations(found), "order")
    close(merge(order), oracle(*inputs, scale=SCALE, valid=valid), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_sink_takes_attention_and_gives_nothing(dtype: torch.dtype) -> None:
    logit = torch.linspace(-1, 4, 6, dtype=dtype)

    def ours(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Partial:
        return sink(attend(query, key, value, scale=SCALE, valid=padded()), sinks)

    def theirs(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Partial:
        return oracle(query, key, value, scale=SCALE, valid=padded(), sinks=sinks.double())

    assert_same_with_gradients(ours, theirs, (*random_set(dtype=dtype), logit))


def test_a_sink_stands_once_beside_window_and_memory() -> None:
    inputs = random_set()
    seen = torch.ones(2, 100, dtype=torch.bool)
    logit = torch.linspace(-1, 4, 6, dtype=torch.float64)
    first, *rest = parts(*inputs, seen, (0, 63, 80, 100))
    expected = oracle(*inputs, scale=SCALE, sinks=logit)
    close(merge([sink(first, logit), *rest]), expected, 1e-10)


def mixture(
    attention: Callable[..., Partial], logit: Tensor, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """g * attention(memory) + (1 - g) * attention(window), of the first 63 and the last 37 keys."""
    query, key, value = inputs
    memory = attention(query, key[:, :, :63], value[:, :, :63], scale=SCALE)
    local = attention(query, key[:, :, 63:], value[:, :, 63:], scale=SCALE)
    share = (1 / (1 + torch.exp(-logit)))[:, None, None]
    union = (local.lse.exp() + memory.lse.exp()).log()
    return share * memory.output + (1 - share) * local.output, union


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_gate_mixes_window_and_memory_per_head_with_gradients(dtype: torch.dtype) -> None:
    def ours(query: Tensor, key: Tensor, value: Tensor, logit: Tensor) -> Partial:
        seen = torch.ones(2, 100, dtype=torch.bool)
        memory, local = parts(query, key, value, seen, (0, 63, 100))
        return gate(local, memory, logit)

    def theirs(query: Tensor, key: Tensor, value: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        return mixture(oracle, logit.double(), (query, key, value))

    logit = torch.linspace(-2, 2, 6, dtype=dtype)
    assert_same_with_gradients(ours, theirs, (*random_set(dtype=dtype), logit))


def test_an_empty_memory_leaves_the_window_alone_whatever_the_gate_says() -> None:
    query, key, value = random_set(5, 7)
    local = attend(query, key, value, scale=SCALE)
    logit = torch.full((6,), 3.0, dtype=torch.float64)
    close(gate(local, nothing(query), logit), local, 1e-14)


def test_a_gate_between_two_empty_sets_has_finite_gradients() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in random_set(5, 7))
    logit = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    first_only = torch.tensor([[True] * 7, [False] * 7])
    part = attend(query, key, value, scale=SCALE, valid=first_only)
    mixed = gate(part, part, logit)
    assert mixed.output[1].eq(0).all()
    assert mixed.lse[1].isneginf().all()
    (mixed.output.sum() + mixed.lse[0].sum() + mixed.lse.exp().sum()).backward()
    for leaf in (query, key, value, logit):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
