"""Attention over a long memory takes space linear in queries + keys: there is no queries x keys matrix."""

from collections.abc import Callable, Sequence
from importlib import import_module

import pytest
import torch
from sets import Set, random_set

from longfocus.core import blocked, fused
from longfocus.core.attention import Partial, attend
from longfocus.hf.trace import Trace
from longfocus.memory import Part, base, dense, exact
from space import elements, measured

QUERIES, KEYS, HEADS, DIM = 256, 40_000, 2, 8
BLOCK = 2**18
"""Scores that may be held at a time; the full matrix would be nearly 80 times as large."""
LINEAR = (QUERIES + KEYS) * HEADS * DIM
MATRIX = QUERIES * KEYS * HEADS


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", BLOCK)
    monkeypatch.setattr(base, "SEARCH_ELEMENTS", BLOCK)


def long_memory(*, wants_gradients: bool) -> Set:
    tensors = random_set(
        QUERIES, KEYS, heads=HEADS, kv_heads=HEADS, batch=1, dim=DIM, dtype=torch.float32
    )
    return Set(*(tensor.requires_grad_(wants_gradients) for tensor in tensors))


def through_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Partial:
    valid = torch.ones(1, key.shape[2], dtype=torch.bool)
    return attend(query, key, value, scale=0.3, valid=valid)


def through_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Partial:
    half = key.shape[2] // 2
    parts = [Part(key[:, :, :half], value[:, :, :half]), Part(key[:, :, half:], value[:, :, half:])]
    return dense(query, parts, scale=0.3)


def through_exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Partial:
    return exact(query, [Part(key, value)], scale=0.3, top_k=5)


def test_the_measure_sees_a_full_matrix_in_the_forward_and_in_the_backward_pass() -> None:
    query, key = torch.randn(30, 2, requires_grad=True), torch.randn(40, 2)
    with measured() as space:
        scores = query @ key.T
        weights = scores.exp()
        weights.sum().backward()
    assert elements(scores) == space.largest == 1200
    assert space.saved >= 1200


@pytest.mark.parametrize("attention", [through_attend, through_dense, through_exact])
def test_reading_a_long_memory_is_linear_in_queries_and_keys(
    attention: Callable[..., Partial], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the kernel's own space cannot be watched, the blocks can
    monkeypatch.setattr(fused, "can_run", lambda *_: False)
    inputs = long_memory(wants_gradients=False)
    with measured() as space:
        attention(*inputs)
    assert 0 < space.largest <= BLOCK + LINEAR < MATRIX / 20


@pytest.mark.parametrize("attention", [through_attend, through_dense, through_exact])
def test_gradients_through_a_long_memory_are_linear_in_queries_and_keys(
    attention: Callable[..., Partial],
) -> None:
    inputs = long_memory(wants_gradients=True)
    with measured() as space:
        output, lse = attention(*inputs)
        (output.sum() + lse.sum()).backward()
    assert all(tensor.grad is not None for tensor in inputs)
    assert 0 < space.largest <= BLOCK + LINEAR < MATRIX / 20
    assert 0 < space.saved <= 4 * LINEAR < MATRIX / 7


@pytest.mark.parametrize("search", [dense, exact])
def test_a_memory_of_another_type_is_converted_some_pairs_at_a_time(
    search: Callable[..., Partial], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_time = 2**15
    monkeypatch.setattr(base, "CONVERTED_ELEMENTS", at_a_time)
    monkeypatch.setattr(base, "SEARCH_ELEMENTS", at_a_time)
    query, key, value = random_set(
        4, KEYS, heads=HEADS, kv_heads=HEADS, batch=1, dtype=torch.float32
    )
    part = Part(key.bfloat16(), value.bfloat16())
    with measured() as space:
        search(query, [part], scale=0.3)
    assert 0 < space.largest <= 2 * at_a_time < elements(part.key) / 9


def through_trace(query: torch.Tensor, parts: Sequence[Part], *, scale: float) -> None:
    total = dense(query, parts, scale=scale).lse
    trace = Trace()
    trace.begin(0, 1, query.shape[2])
    trace.look(0, query, parts, total, scale=scale)


@pytest.mark.parametrize("look", [exact, through_trace])
def test_one_query_converts_no_more_keys_than_it_has_scores(
    look: Callable[..., Partial | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CONVERTED_ELEMENTS", 2**15)
    query, key, value = random_set(
        1, KEYS, heads=HEADS, kv_heads=HEADS, batch=1, dim=DIM, dtype=torch.float32
    )
    part = Part(key.bfloat16(), value.bfloat16())
    with measured() as space:
        look(query, [part], scale=0.3)
    assert 0 < space.largest <= KEYS * HEADS < elements(part.key) / 7


def test_top_k_search_gathers_the_chosen_pairs_of_a_few_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top_k, at_a_time = 64, 2**14
    # the package's attribute of that name is the function
    monkeypatch.setattr(import_module("longfocus.memory.exact"), "GATHER_ELEMENTS", at_a_time)
    query, key, value = random_set(QUERIES, 1000, heads=HEADS, kv_heads=1, batch=1, dim=DIM)
    with measured() as space:
        found = exact(query, [Part(key, value)], scale=0.3, top_k=top_k)
    assert found.output.shape == query.shape
    assert 0 < space.largest <= 2 * at_a_time < QUERIES * HEADS * top_k * DIM / 7
