"""Parts of several lines with padding, in every number type, for the tests of sorting and of clusters."""

import pytest
import torch
from torch import Tensor

from longfocus.memory import Part
from longfocus.memory.clusters import Clusters
from longfocus.memory.header import BLOCK_BYTES
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

LINES, KV_HEADS, DIM = 3, 2, 8
KINDS = (torch.float32, torch.bfloat16, torch.int8)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_padding = pytest.mark.parametrize("padding", ["none", "some", "a whole line"])


def part_of(pairs: int = 203, kind: torch.dtype = torch.float32, padding: str = "some") -> Part:
    key, value = (torch.randn(LINES, KV_HEADS, pairs, DIM) for _ in range(2))
    valid = None
    if padding != "none":
        valid = torch.rand(LINES, pairs) < 0.7
        valid[1] = padding == "some"
    rows = (2, 0, 1, 1)
    if kind != torch.int8:
        return Part(key.to(kind), value.to(kind), valid, rows)
    (key, by_key), (value, by_value) = quantize(key), quantize(value)
    return Part(key, value, valid, rows, Scales(by_key, by_value))


def clusters_of(part: Part) -> Clusters:
    assert part.clusters is not None
    return part.clusters


def fields_of(clusters: Clusters) -> list[Tensor]:
    return [clusters.centroids, clusters.spread, clusters.starts, clusters.order]


def tensors(part: Part) -> list[Tensor]:
    own = [] if part.clusters is None else fields_of(part.clusters)
    valid = part.valid
    if valid is None:
        valid = torch.ones(len(part.key), len(part), dtype=torch.bool)
    return [part.key, part.value, valid, *(part.scales or ()), *own]


def assert_same(one: Part, other: Part) -> None:
    """Bit for bit."""
    for first, second in zip(tensors(one), tensors(other), strict=True):
        assert first.dtype == second.dtype
        assert first.equal(second)


def numbers(part: Part) -> Tensor:
    """Keys as they are meant, in float64."""
    scale = 1.0 if part.scales is None else part.scales.key[..., None].double()
    return part.key.double() * scale


def groups(tokens: int = 4096, count: int = 32, dim: int = 128) -> Part:
    """Keys of two heads in groups that lie far apart."""
    centers = 30 * torch.nn.functional.normalize(torch.randn(2, count, dim), dim=2)
    key = centers[:, torch.randint(count, (tokens,))] + torch.randn(2, tokens, dim)
    return cluster(Part(key[None], torch.randn(1, 2, tokens, dim)), count)


def best_blocks(part: Part, query: Tensor) -> set[int]:
    """Where the best cluster of each head lies in the file."""
    assert part.clusters is not None
    own, found = part.clusters, set()
    each = 2 * part.key.shape[3] * part.key.element_size()
    for head in range(2):
        best = int(own.log_mass(query[0, head], 0, head).argmax())
        bounds = own.starts[0, head, best : best + 2] + head * len(part)
        first, last = (bounds * each).tolist()
        found |= set(range(first // BLOCK_BYTES, (last - 1) // BLOCK_BYTES + 1))
    return found
