"""int8 vectors: the error is bounded by half a step of each vector's own scale."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from longfocus.memory.quantized import LARGEST, quantize


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
