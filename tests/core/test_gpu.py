"""The fused kernel of a GPU: how it is called, with a plain stand-in, and that nobody relies on it unchecked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longfocus.core import blocked, gpu
from longfocus.core.blocked import Scoring


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any,
    scale: float,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """What torch documents: (tokens, heads, dim) each, the ends of one sequence, lse (heads, tokens)."""
    assert (cu_seq_q.tolist(), cu_seq_k.tolist()) == ([0, max_q], [0, max_k])
    assert (len(query), len(key), return_aux.lse) == (max_q, max_k, True)
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = (tensor.repeat_interleave(groups, 1).double() for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value), scores.logsumexp(-1)


def given(groups: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(groups)
    pairs = torch.randn(2, 3, 40, 2, 16, generator=generator).to(dtype)
    query = torch.randn(2, 3 * groups, 7, 16, generator=generator).to(dtype)
    return query, pairs[..., 0, :], pairs[..., 1, :]


@pytest.mark.parametrize("groups", [1, 4])
def test_the_kernel_is_called_as_documented_and_gives_what_blocks_give(groups: int) -> None:
    scoring = Scoring(scale=0.3)
    found = gpu.forward(*given(groups), scoring, varlen_attn)
    for one, other in zip(found, blocked.forward(*given(groups), scoring), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_elsewhere_than_on_a_gpu_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_agrees", lambda *_: pytest.fail("asked"))
    assert not gpu.can_run(*given(1, torch.bfloat16), Scoring(scale=1.0))


@pytest.fixture
def _unknown_kernel() -> None:
    gpu._agrees.cache_clear()


@pytest.mark.usefixtures("_unknown_kernel")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(0.0, None), (0.1, "other numbers"), (RuntimeError("no FLASH"), "no FLASH")],
)
def test_a_kernel_that_fails_or_errs_is_left_alone(
    error: float | Exception, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if isinstance(error, Exception):
            raise error
        output, lse = varlen_attn(*args, **options)
        return output + error, lse

    monkeypatch.setattr(gpu._library(), "varlen_attn", kernel)
    asked = (torch.device("cpu"), torch.float16, 16, 2)
    if reason is None:
        assert gpu._agrees(*asked)
        return
    with pytest.warns(UserWarning, match=reason):
        assert not gpu._agrees(*asked)
