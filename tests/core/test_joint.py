"""Sinks, softcap and a pool of more rows than the batch: still one softmax, by values and gradients."""

import pytest
import torch
from sets import assert_same_with_gradients, random_set
from torch import Tensor

from longfocus.core import blocked, reference
from longfocus.core.blocked import Scoring
from longfocus.core.crossbatch import Pool, attend_jointly, attend_rows

LENGTH, HEADS, SCALE = 11, 4, 0.4
# 3 rows, numbers 2 to 4 of a pool of 7; as many contexts as they like
RAGGED = torch.tensor([[0, -1, 6, 5], [-1, -1, -1, -1], [-1, 3, -1, -1]])
OWN_ROWS = slice(2, 5)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pool: Pool,
    plan: Tensor,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Row by row: the listed keys and the own ones in one matrix."""
    found = []
    ahead = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for row, contexts in enumerate(plan.tolist()):
        listed = [other for other in contexts if other >= 0]
        keys = torch.cat([*pool.key[listed], key[row]], 1)[None]
        values = torch.cat([*pool.value[listed], value[row]], 1)[None]
        hidden = torch.zeros(LENGTH, keys.shape[2], dtype=torch.bool)
        hidden[:, -LENGTH:] = ahead
        if pool.valid is not None and listed:
            hidden[:, :-LENGTH] |= ~pool.valid[listed].flatten()
        mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill(hidden, -torch.inf)
        if bias is not None:
            mask[:, -LENGTH:] += bias[row, 0]
        output, _ = reference.attention(
            query[row][None],
            keys,
            values,
            scale=SCALE,
            bias=mask[None, None],
            sinks=sinks,
            softcap=softcap,
        )
        found.append(output)
    return as_compared(torch.cat(found))


def as_compared(output: Tensor) -> tuple[Tensor, Tensor]:
    return output, torch.zeros(output.shape[:-1])


def inputs(kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """query, key, value of the batch, key and value of the pool, sinks."""
    own = random_set(LENGTH, LENGTH, batch=3, heads=HEADS, kv_heads=kv_heads, dtype=dtype)
    pool = random_set(LENGTH, LENGTH, batch=7, heads=HEADS, kv_heads=kv_heads, dtype=dtype)
    sinks = torch.linspace(-1, 3, HEADS, dtype=torch.float64).to(dtype)
    return *own, pool.key, pool.value, sinks


def real() -> Tensor:
    """Padding differs in every row of the pool; row 5 has no real token."""
    found = torch.arange(LENGTH) < LENGTH - torch.arange(7)[:, None]
    found[5] = False
    return found


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [True, False])
def test_sinks_softcap_and_a_larger_pool_have_the_values_and_gradients_of_the_formula(
    has_sinks: bool, softcap: float | None, is_padded: bool, has_bias: bool
) -> None:
    valid = real() if is_padded else None
    bias = torch.randn(3, 1, LENGTH, LENGTH, dtype=torch.float64)
    ahead = torch.ones(LENGTH, LENGTH).triu(1).bool()
    causal = bias.masked_fill(ahead, -torch.inf) if has_bias else None
    own = Scoring(scale=SCALE, softcap=softcap, bias=causal, causal=not has_bias)

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, pool_key, pool_value, sinks = given
        pool = Pool(pool_key, pool_value, valid)
        chosen = sinks if has_sinks else None
        output = attend_jointly(query, key, value, pool, RAGGED, own, chosen)
        return as_compared(output + 0 * sinks.sum())

    def theirs(*given: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, pool_key, pool_value, sinks = given
        pool = Pool(pool_key, pool_value, valid)
        chosen = sinks if has_sinks else None
        output, lse = plain(
            query, key, value, pool, RAGGED, bias if has_bias else None, chosen, softcap
        )
        return output + 0 * sinks.sum(), lse

    assert_same_with_gradients(ours, theirs, inputs())


def test_sinks_take_attention_from_rows_that_see_nobody_too() -> None:
    query, key, value, pool_key, pool_value, sinks = inputs()
    own, pool = Scoring(scale=SCALE, causal=True), Pool(pool_key, pool_value)
    found = attend_jointly(query, key, value, pool, torch.full((3, 1), -1), own, sinks)
    expected, _ = reference.attention(query, key, value, scale=SCALE, causal=True, sinks=sinks)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_sinks_have_the_type_of_the_sinks(dtype: torch.dtype) -> None:
    *tensors, sinks = inputs(dtype=dtype)
    sinks.requires_grad_()
    own, pool = Scoring(scale=SCALE, causal=True), Pool(*tensors[3:])
    attend_jointly(*tensors[:3], pool, RAGGED, own, sinks).sum().backward()
    exact = [tensor.double() for tensor in tensors]
    wide = sinks.detach().double().requires_grad_()
    plain(*exact[:3], Pool(*exact[3:]), RAGGED, sinks=wide)[0].sum().backward()
    assert sinks.grad is not None
    assert wide.grad is not None
    assert sinks.grad.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    torch.testing.assert_close(sinks.grad.double(), wide.grad, atol=tolerance, rtol=0)


def test_chunks_of_any_size_give_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", 4)
    query, _, _, key, value, _ = inputs()
    query = query[:1].repeat(9, 1, 1, 1) + torch.randn(9, 1, 1, 1, dtype=query.dtype)
    # 9 rows with 1, 2 or 5 contexts: chunks of 7, of 3 and of a single row
    counts = [1, 5, 2, 2, 5, 1, 2, 2, 5]
    plan = torch.full((9, 5), -1)
    for row, count in enumerate(counts):
        plan[row, :count] = torch.arange(row, row + count) % 7

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        return attend_rows(given[0], Pool(given[1], given[2]), plan, scale=SCALE)

    def theirs(*given: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for row, count in enumerate(counts):
            seen = plan[row, :count]
            keys, values = (torch.cat([*tensor[seen]], 1)[None] for tensor in given[1:])
            found.append(reference.attention(given[0][row][None], keys, values, scale=SCALE))
        return torch.cat([output for output, _ in found]), torch.cat([lse for _, lse in found])

    assert_same_with_gradients(ours, theirs, (query, key, value))
