"""What a memory layer may look into in these tests, and the plain answer over all of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from longfocus.core import reference
from longfocus.core.attention import Partial
from longfocus.memory import Part, Store
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

HEADS, KV_HEADS, DIM, ROWS = 6, 2, 8, 3


def pairs(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random keys and values in the default type."""
    key, value = (torch.randn(rows, KV_HEADS, tokens, DIM) for _ in range(2))
    return key, value


def grown() -> list[Part]:
    """Three appends of different lengths."""
    store = Store()
    for tokens in (1, 14, 48):
        store.append(*pairs(ROWS, tokens))
    return store.parts()


def padded() -> list[Part]:
    """Padding in the middle of a block; the second row is padding only."""
    store = Store()
    store.append(*pairs(ROWS, 20))
    real = torch.rand(ROWS, 43) < 0.5
    real[1] = False
    store.append(*pairs(ROWS, 43), real)
    return store.parts()


def blind() -> list[Part]:
    """One row sees nothing at all."""
    store = Store()
    real = torch.ones(ROWS, 17, dtype=torch.bool)
    real[2] = False
    store.append(*pairs(ROWS, 17), real)
    return store.parts()


def shared() -> list[Part]:
    """Rows that share lines, then part, then change places."""
    store = Store()
    store.append(*pairs(ROWS, 30), lines=(0, 0, 0))
    store.append(*pairs(ROWS, 12), lines=(0, 0, 1))
    store.select([2, 0, 0])
    store.append(*pairs(ROWS, 21))
    store.select([1, 1, 0])
    return store.parts()


def document() -> list[Part]:
    """One line that every row sees."""
    return [Part(*pairs(1, 63))]


def several() -> list[Part]:
    return [*document(), *shared(), *document(), *padded()]


def with_gradients() -> list[Part]:
    """Pairs that belong to the graph, between others that do not."""
    store = Store()
    store.append(*pairs(ROWS, 11))
    store.append(*(tensor.requires_grad_() for tensor in pairs(ROWS, 13)))
    store.append(*(tensor.requires_grad_() for tensor in pairs(ROWS, 7)))
    store.append(*pairs(ROWS, 3))
    return store.parts()


def narrow() -> list[Part]:
    """A memory of a narrower type than the queries."""
    store = Store(torch.bfloat16)
    store.append(*pairs(ROWS, 40))
    return [*store.parts(), *document()]


def quantized() -> list[Part]:
    """int8 pairs, one of them zero, beside others."""
    key, value = pairs(1, 40)
    key[:, :, 3] = 0
    (key, by_key), (value, by_value) = quantize(key), quantize(value)
    return [Part(key, value, scales=Scales(by_key, by_value)), *grown()]


def sorted_by_clusters() -> list[Part]:
    """Pairs of several rows with padding, and int8 ones, that lie in the order of clusters."""
    return [cluster(part, 4) for part in (*padded(), *quantized(), *shared())] + grown()


def nothing() -> list[Part]:
    return []


def no_pairs() -> list[Part]:
    """Parts that hold nothing, as after an eviction that was taken back."""
    return [Part(*pairs(1, 0)), Part(*pairs(ROWS, 0), rows=(0, 1, 2))]


SOURCES: list[Callable[[], list[Part]]] = [
    grown,
    padded,
    blind,
    shared,
    document,
    several,
    with_gradients,
    narrow,
    quantized,
    sorted_by_clusters,
    nothing,
    no_pairs,
]


class Together:
    """All pairs that each row sees, copied side by side: [rows, kv_heads, pairs, dim]."""

    def __init__(
        self, parts: list[Part], rows: int = ROWS, dtype: torch.dtype | None = None
    ) -> None:
        dtype = dtype or torch.get_default_dtype()
        none = torch.empty(rows, KV_HEADS, 0, DIM, dtype=dtype)
        owners = [[0] * rows if part.rows is None else list(part.rows) for part in parts]
        lines = list(zip(parts, owners, strict=True))
        numbers = [(dequantized(part, dtype), rows) for part, rows in lines]
        self.key = torch.cat([none, *(key[rows] for (key, _), rows in numbers)], 2)
        self.value = torch.cat([none, *(value[rows] for (_, value), rows in numbers)], 2)
        real = [
            torch.ones(rows, len(part)).bool() if part.valid is None else part.valid[own]
            for part, own in lines
        ]
        self.valid = torch.cat([torch.ones(rows, 0).bool(), *real], 1)


def dequantized(part: Part, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = part.key.to(dtype), part.value.to(dtype)
    if part.scales is None:
        return key, value
    return key * part.scales.key.to(dtype)[..., None], value * part.scales.value.to(dtype)[
        ..., None
    ]


def plain(
    query: Tensor, parts: list[Part], *, scale: float, softcap: float | None, top_k: int | None
) -> Partial:
    """Attention over the best `top_k` pairs of all (None: over all of them), by the formula."""
    batch, heads = query.shape[:2]
    all_pairs = Together(parts, batch, query.dtype)
    # every query head has a choice of its own, so heads become rows
    query = query.flatten(0, 1)[:, None]
    key, value = (
        tensor.repeat_interleave(heads // KV_HEADS, 1).flatten(0, 1)[:, None]
        for tensor in (all_pairs.key, all_pairs.value)
    )
    hidden = ~all_pairs.valid.repeat_interleave(heads, 0)[:, None, None]
    scores = (query @ key.mT).masked_fill(hidden, -torch.inf)
    bias = torch.zeros_like(scores).masked_fill(scores.isneginf(), -torch.inf)
    if top_k is not None and top_k < scores.shape[-1]:
        best = scores.topk(top_k, dim=-1).indices
        bias = torch.full_like(scores, -torch.inf).scatter(-1, best, bias.gather(-1, best))
    output, lse = reference.attention(
        query, key, value, scale=scale, softcap=softcap, bias=bias.detach()
    )
    return Partial(output.view(batch, heads, *output.shape[2:]), lse.view(batch, heads, -1))
