"""What FAISS searches in these tests, long enough to be indexed, and what it shall find."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longfocus.core.attention import Partial
from longfocus.memory import Part, exact
from longfocus.memory.faiss_search import Faiss
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

HEADS, KV_HEADS, DIM, SCALE, TOP_K = 4, 2, 16, 0.5, 6
INDEXES = ("Flat", "HNSW16", "IVF16,Flat", "IVF16,SQ8")
every_index = pytest.mark.parametrize("index", INDEXES)


def pairs(rows: int, tokens: int, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Keys around 24 centres, and values."""
    centres = 2 * torch.randn(24, DIM, generator=torch.Generator().manual_seed(1))
    own = centres[torch.randint(24, (rows, KV_HEADS, tokens))]
    return own + spread * torch.randn_like(own), torch.randn_like(own)


def queries(rows: int, count: int = 5) -> Tensor:
    """Queries that look for one of the centres each."""
    key, _ = pairs(rows, count, 1.0)
    return key.repeat_interleave(HEADS // KV_HEADS, 1)


def answer(search: Any, query: Tensor, parts: list[Part], softcap: float | None = None) -> Partial:
    return search(query, parts, scale=SCALE, softcap=softcap)


def oracle(query: Tensor, parts: list[Part], softcap: float | None = None) -> Partial:
    return exact(query, parts, scale=SCALE, softcap=softcap, top_k=TOP_K)


def is_equal(found: Partial, expected: Partial) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def indexed(search: Faiss, parts: list[Part]) -> list[int]:
    """How many pairs of every part lie in indexes."""
    found = [search._indexed(part, 1)[0] for part in parts]
    return [len(part) if type(part) is not Part else 0 for part in found]


def with_padding() -> list[Part]:
    real = torch.rand(2, 700) < 0.6
    real[1, 5:] = False
    return [Part(*pairs(2, 700), real, (0, 1))]


def without_anything() -> list[Part]:
    real = torch.ones(2, 700, dtype=torch.bool)
    real[1] = False
    return [Part(*pairs(2, 700), real, (0, 1))]


def one_line() -> list[Part]:
    return [Part(*pairs(1, 900))]


def shared_lines() -> list[Part]:
    return [Part(*pairs(2, 500), None, (1, 1))]


def documents() -> list[Part]:
    return [Part(*pairs(1, tokens)) for tokens in (300, 20, 1500)]


def narrow() -> list[Part]:
    key, value = pairs(1, 600)
    return [Part(key.bfloat16(), value.bfloat16())]


def int8() -> list[Part]:
    (key, by_key), (value, by_value) = map(quantize, pairs(1, 600))
    return [Part(key, value, scales=Scales(by_key, by_value))]


def sorted_pairs() -> list[Part]:
    return [cluster(part, 8) for part in (*with_padding(), *int8())]


def equal_keys() -> list[Part]:
    key, value = pairs(1, 600)
    return [Part(key[:, :, :1].expand_as(key).clone(), value[:, :, :1].expand_as(key).clone())]


SOURCES: list[Callable[[], list[Part]]] = [
    with_padding,
    without_anything,
    one_line,
    shared_lines,
    documents,
    narrow,
    int8,
    sorted_pairs,
    equal_keys,
]
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
