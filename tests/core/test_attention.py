"""Every path of attention over one key set has the values and gradients of the plain formula."""

from functools import partial
from typing import Any

import pytest
import torch
from sets import (
    TOLERANCE,
    assert_same_values,
    assert_same_with_gradients,
    close,
    oracle,
    random_set,
    small_blocks,
    with_gradients,
)
from torch import Tensor

from longfocus.core import blocked, fused
from longfocus.core.attention import Partial, attend, merge
from longfocus.core.blocked import Scoring

SCALE = 0.4
SIZES = [(63, 100), (100, 63), (1, 63), (100, 100)]
HEADS = [(6, 2), (4, 4), (3, 1)]


def real_keys(keys: int) -> Tensor:
    """Padding on the left, of all keys in the second row."""
    return torch.arange(keys) >= torch.tensor([[keys // 3], [keys]])


def partly_seen(queries: int, keys: int) -> Tensor:
    """[1, 1, queries, keys]: some pairs only; the first query sees nothing."""
    seen = torch.rand(queries, keys, generator=torch.Generator().manual_seed(3)) < 0.4
    seen[0] = False
    return seen[None, None]


def as_bias(seen: Tensor) -> Tensor:
    """What a bool mask becomes in hf: 0 or -inf."""
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)


def options(name: str, queries: int, keys: int) -> dict[str, Any]:
    slope = -0.1 * (torch.arange(queries)[:, None] - torch.arange(keys)).abs().double()
    return {
        "plain": {},
        "causal": {"causal": True},
        "padding": {"valid": real_keys(keys)},
        "bool mask": {"bias": as_bias(partly_seen(queries, keys))},
        "slope": {"bias": torch.stack([slope, 2 * slope])[:, None]},
        "padding and mask": {
            "valid": real_keys(keys),
            "bias": as_bias(partly_seen(queries, keys)),
        },
        "softcap": {"softcap": 1.5},
        "all together": {
            "softcap": 1.5,
            "causal": True,
            "valid": real_keys(keys),
            "bias": slope[None, None],
        },
    }[name]


OPTIONS = ["plain", "causal", "padding", "bool mask", "slope", "padding and mask", "softcap"]
OPTIONS += ["all together"]

every_option = pytest.mark.parametrize("name", OPTIONS)
every_size = pytest.mark.parametrize(
    ("queries", "keys", "dtype"),
    [*((*size, torch.float64) for size in SIZES), (63, 100, torch.float32)],
)
every_type = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def both(name: str, queries: int, keys: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """attend and its oracle, with the options of that name."""
    given = options(name, queries, keys)
    if "bias" in given:
        given["bias"] = given["bias"].to(dtype)
    return partial(attend, scale=SCALE, **given), partial(oracle, scale=SCALE, **given)


@every_size
@every_option
def test_blocks_of_keys_have_the_values_and_gradients_of_the_formula(
    name: str, queries: int, keys: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    assert_same_with_gradients(
        *both(name, queries, keys, dtype), random_set(queries, keys, dtype=dtype)
    )


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@every_option
def test_every_grouping_of_heads_has_the_values_and_gradients_of_the_formula(
    name: str, heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, keys=16)
    inputs = random_set(5, 63, heads=heads, kv_heads=kv_heads)
    assert_same_with_gradients(*both(name, 5, 63, torch.float64), inputs)
    assert_same_values(*both(name, 5, 63, torch.float64), inputs)


@every_size
@every_option
def test_without_gradients_the_values_are_those_of_the_formula(
    name: str, queries: int, keys: int, dtype: torch.dtype
) -> None:
    assert_same_values(*both(name, queries, keys, dtype), random_set(queries, keys, dtype=dtype))


@pytest.mark.parametrize("name", ["plain", "padding", "bool mask", "slope", "padding and mask"])
@every_type
def test_the_fused_kernel_answers_where_no_gradient_is_wanted(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "forward", never)
    assert_same_values(*both(name, 63, 100, dtype), random_set(dtype=dtype))


def test_the_fused_kernel_answers_for_a_causal_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "forward", never)
    assert_same_values(*both("causal", 63, 63, torch.float64), random_set(63, 63))


@pytest.mark.parametrize("name", ["plain", "causal", "padding", "bool mask", "slope"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@every_type
def test_the_fused_backward_pass_has_the_gradients_of_the_blocked_one(
    name: str, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    """Also where output and lse are those of a union with other keys, as in crossbatch."""
    given = options(name, 63, 63)
    if "bias" in given:
        given["bias"] = given["bias"].to(dtype)
    scoring = Scoring(scale=SCALE, **given)
    query, key, value = random_set(63, 63, heads=heads, kv_heads=kv_heads, dtype=dtype)
    output, lse = blocked.forward(query, key, value, scoring)
    more = blocked.forward(
        query,
        *random_set(63, 9, heads=heads, kv_heads=kv_heads, dtype=dtype)[1:],
        Scoring(scale=SCALE),
    )
    upstream = torch.randn_like(output)
    for joint in (Partial(output, lse), merge([Partial(output, lse), Partial(*more)])):
        delta = (upstream * joint.output).sum(-1)
        expected = blocked.backward(query, key, value, scoring, joint.lse, upstream, delta)
        found = fused.backward(query, key, value, scoring, *joint, upstream)
        close(found, expected, 10 * TOLERANCE[dtype])


@every_option
def test_keys_that_take_no_gradient_cost_none_and_change_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    query, key, value = random_set()
    ours, _ = both(name, 63, 100, torch.float64)
    expected = with_gradients(ours, (query, key, value))
    monkeypatch.setattr(blocked, "backward", never)
    found = with_gradients(lambda one: ours(one, key, value), (query,))
    close(found[0], expected[0], 0)
    close(found[1], expected[1][:1], 0)


def test_many_keys_take_the_fused_backward_pass_and_few_in_bfloat16_the_blocked_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(keys: int, dtype: torch.dtype) -> None:
        inputs = [tensor.requires_grad_() for tensor in random_set(5, keys, dtype=dtype)]
        attend(*inputs, scale=SCALE).output.sum().backward()

    few, many = fused.SLOW_BACKWARD_KEYS - 1, fused.SLOW_BACKWARD_KEYS
    with monkeypatch.context() as patch:
        patch.setattr(blocked, "backward", never)
        run(many, torch.bfloat16)
        run(few, torch.float32)
        with pytest.raises(AssertionError):
            run(few, torch.bfloat16)
    monkeypatch.setattr(fused, "backward", never)
    run(few, torch.bfloat16)


def never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this path must not be taken here")


# bfloat16 keeps 8 bits: scores up to 10 are rounded by 0.02 at most, weights and values by 0.004.
BFLOAT16_TOLERANCE = 0.04


@pytest.mark.parametrize("path", ["fused", "blocked"])
@pytest.mark.parametrize("name", ["plain", "padding", "bool mask"])
def test_bfloat16_stays_close_to_the_formula_in_float32(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    if path == "blocked":
        monkeypatch.setattr(fused, "can_run", lambda *_: False)
    else:
        monkeypatch.setattr(blocked, "forward", never)
    inputs = random_set(dtype=torch.bfloat16)
    ours, theirs = both(name, 63, 100, torch.bfloat16)
    with torch.no_grad():
        found = ours(*inputs)
        close(found, theirs(*inputs), BFLOAT16_TOLERANCE)
    assert found.output.dtype == found.lse.dtype == torch.float32


@pytest.mark.parametrize("wants_gradients", [False, True])
def test_float16_products_beyond_its_range_do_not_overflow(wants_gradients: bool) -> None:
    query, key, value = (100 * tensor for tensor in random_set(dtype=torch.float16))
    value = value / 100
    assert (query.float() @ key.float().repeat_interleave(3, 1).mT).max() > 65504
    expected = oracle(query, key, value, scale=1e-4)
    found = attend(query.requires_grad_(wants_gradients), key, value, scale=1e-4)
    close((tensor.detach() for tensor in found), expected, 0.005)


def test_bfloat16_gradients_stay_close_to_those_of_the_formula() -> None:
    inputs = random_set(dtype=torch.bfloat16)
    ours, theirs = both("padding", 63, 100, torch.bfloat16)
    for found, expected in zip(
        with_gradients(ours, inputs)[1], with_gradients(theirs, inputs)[1], strict=True
    ):
        assert found.dtype == torch.bfloat16
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < 0.02


@pytest.mark.parametrize("wants_gradients", [False, True])
def test_a_query_that_sees_nothing_gives_nothing_and_takes_no_gradient(
    wants_gradients: bool,
) -> None:
    query, key, value = (t.requires_grad_(wants_gradients) for t in random_set(3, 5))
    seen = torch.tensor([[True] * 5, [False] * 5])
    output, lse = attend(query, key, value, scale=SCALE, valid=seen)
    assert output[1].eq(0).all()
    assert lse[1].isneginf().all()
    assert output[0].ne(0).all()
    assert lse[0].isfinite().all()
    if wants_gradients:
        (output.sum() + lse.exp().sum()).backward()
        for tensor in (query, key, value):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert tensor.grad[1].eq(0).all()
            assert tensor.grad[0].ne(0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_empty_key_set_gives_nothing_in_the_type_of_the_softmax(dtype: torch.dtype) -> None:
    query, key, value = random_set(5, 0, dtype=dtype)
    output, lse = attend(query, key, value, scale=SCALE)
    assert output.shape == query.shape
    assert output.eq(0).all()
    assert lse.isneginf().all()
    assert output.dtype == lse.dtype == blocked.exact_dtype(query)


def test_padding_may_hold_anything_without_changing_the_answer() -> None:
    query, key, value = random_set(4, 9)
    seen = torch.arange(9).expand(2, -1) >= 3
    wild = key.masked_fill(~seen[:, None, :, None], 1e30)
    for wants_gradients in (False, True):
        query.requires_grad_(wants_gradients)
        expected = attend(query, key[:, :, 3:], value[:, :, 3:], scale=SCALE)
        close(attend(query, wild, value, scale=SCALE, valid=seen), expected, 1e-12)


@pytest.mark.parametrize("wants_gradients", [False, True])
def test_autocast_computes_in_its_own_type_and_gives_gradients_in_that_of_the_inputs(
    wants_gradients: bool,
) -> None:
    inputs = [t.requires_grad_(wants_gradients) for t in random_set(5, 7, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*inputs, scale=SCALE)
    narrow = attend(
        *(t.detach().bfloat16().requires_grad_(wants_gradients) for t in inputs), scale=SCALE
    )
    assert found.output.equal(narrow.output)
    assert found.lse.equal(narrow.lse)
    assert found.output.dtype == torch.float32
    if wants_gradients:
        found.output.sum().backward()
        assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in inputs)


def test_autocast_leaves_float64_alone_like_torch_itself() -> None:
    inputs = random_set(5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*inputs, scale=SCALE)
    close(found, oracle(*inputs, scale=SCALE), 1e-10)
