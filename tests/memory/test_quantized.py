"""int8 vectors: the error is bounded by half a step of each vector's own scale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longfocus.memory.base import Part
from longfocus.memory.quantized import LARGEST, Scales, quantize


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_no_component_is_off_by_more_than_half_a_step(seed: int, size: float) -> None:
    vectors = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)) * size
    steps, scale = quantize(vectors)
    assert steps.shape == vectors.shape
    assert scale.shape == vectors.shape[:-1]
    error = (steps * scale[..., None] - vectors).abs()
    assert (error <= scale[..., None] * (0.5 + 1e-4)).all()


def test_the_largest_component_is_kept_and_zero_stays_zero() -> None:
    steps, scale = quantize(torch.tensor([[0.0, 0.0], [2.54, -1.27], [-5.0, 0.0]]))
    assert steps.tolist() == [[0, 0], [LARGEST, -64], [-LARGEST, 0]]
    assert scale[0] == 0


def test_narrow_types_are_quantized_from_their_own_values() -> None:
    vectors = torch.randn(4, 8).bfloat16()
    for one, other in zip(quantize(vectors), quantize(vectors.float()), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("queries", [1, 2, 256, 257])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_few_queries_and_many_get_what_the_formula_says(dtype: torch.dtype, queries: int) -> None:
    key, value = torch.randn(2, 1, 2, 700, 64)
    parts = {torch.bfloat16: Part(key.bfloat16(), value.bfloat16())}
    (narrow, by_key), (low, by_value) = quantize(key), quantize(value)
    parts[torch.int8] = Part(narrow, low, scales=Scales(by_key, by_value))
    query = torch.randn(1, 2, queries, 64).bfloat16()
    part = parts[dtype]
    keys, values = (numbers(0, len(part), torch.float32) for numbers in (part.keys, part.values))
    scores = query.float() @ keys.mT * 0.2
    found = part.attend(query, scale=0.2)
    torch.testing.assert_close(found.output, scores.softmax(-1) @ values, atol=2e-2, rtol=0)
    torch.testing.assert_close(found.lse, scores.logsumexp(-1), atol=2e-2, rtol=0)
