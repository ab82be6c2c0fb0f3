"""Bytes and seconds of a long memory before it is read.

Bytes are arithmetic over the model's configuration. Seconds come from a calibration of some seconds on this machine
with this model: windows read with nothing in memory and with made-up memories, and tokens decoded likewise. A window's
cost is taken for a line between the sizes that were tried, and for the same line beyond the last.

    window with M tokens in memory      cost(M) = cost(0) + (time with M made-up pairs - time with none)
    text of N tokens                    sum of cost(M) over its windows, M = 0, window, 2 window, ...

With one memory layer reading does not look into the memory, and the sum is a multiple.
"""

import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import models
from longfocus.hf.layers import evaluating, kv_heads_and_dim
from longfocus.inference.reader import BATCH_TOKENS, Reading
from longfocus.memory.description import DTYPES

MOST_BYTES = 2**30
"""Of a made-up memory."""
_REPEATS = 3
_DECODED = 8
_SCALE_BYTES = 4


class Cost(NamedTuple):
    """Seconds of a window or a token, with so many tokens in memory."""

    memory: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a memory of `tokens` tokens takes."""

    tokens: int
    dtype: str
    bytes_per_token: int
    reading_seconds: float
    decode_seconds: float
    """Per token, with all of it in memory, dense search."""
    empty_decode_seconds: float
    """Per token, with nothing in memory."""

    @property
    def memory_bytes(self) -> int:
        return self.tokens * self.bytes_per_token


def estimate(model: Any, tokens: int, memory_dtype: str | None = None) -> Estimate:
    """Calibrate with an attached model, and add up. Raises LongFocusError for an unknown type or length."""
    if tokens < 1:
        raise LongFocusError(f"--tokens must be at least 1. Got {tokens}.")
    focus = model.focus.config
    dtype = memory_dtype or focus.memory_dtype or str(model.dtype).removeprefix("torch.")
    each = bytes_per_token(model.config, focus, dtype)
    sizes = _sizes(model, tokens)
    decode = [Cost(size, _decode_seconds(model, size, dtype)) for size in (0, sizes[-1])]
    return Estimate(
        tokens=tokens,
        dtype=dtype,
        bytes_per_token=each,
        reading_seconds=_reading_seconds(model, tokens, sizes),
        decode_seconds=cost_at(decode, tokens),
        empty_decode_seconds=decode[0].seconds,
    )


def bytes_per_token(config: Any, focus: FocusConfig, dtype: str) -> int:
    """Keys and values of all memory layers; int8 has a scale for each."""
    if dtype not in DTYPES:
        raise LongFocusError(
            f"--memory-dtype {dtype!r} is not a type for keys and values. Allowed: {', '.join(DTYPES)}."
        )
    heads, dim = kv_heads_and_dim(config)
    vector = dim + _SCALE_BYTES if dtype == "int8" else dim * getattr(torch, dtype).itemsize
    return 2 * len(focus.memory_layers) * heads * vector


def reading_seconds(costs: Sequence[Cost], tokens: int, window: int) -> float:
    """The cost of all windows of a text, the last as a share."""
    whole, rest = divmod(tokens, window)
    seconds = sum(cost_at(costs, number * window) for number in range(whole))
    return seconds + cost_at(costs, whole * window) * rest / window


def cost_at(costs: Sequence[Cost], memory: int) -> float:
    """On the lines between the measured sizes (ascending), or beyond on the last of them."""
    if len(costs) == 1:
        return costs[0].seconds
    place = bisect_left([cost.memory for cost in costs], memory)
    place = min(max(place, 1), len(costs) - 1)
    left, right = costs[place - 1], costs[place]
    slope = (right.seconds - left.seconds) / (right.memory - left.memory)
    return left.seconds + slope * (memory - left.memory)


def _sizes(model: Any, tokens: int) -> list[int]:
    """Tokens of the made-up memories, ascending: of the end, and of what is on the way there."""
    focus = model.focus.config
    dtype = focus.memory_dtype or str(model.dtype).removeprefix("torch.")
    most = max(1, MOST_BYTES // bytes_per_token(model.config, focus, dtype))
    last = min(tokens, most)
    return sorted({max(1, last // 8), max(1, last // 2), last})


def _reading_seconds(model: Any, tokens: int, sizes: Sequence[int]) -> float:
    focus = model.focus.config
    window, is_searched = focus.window, len(focus.memory_layers) > 1
    most = 8 * window if is_searched else max(4 * BATCH_TOKENS, 8 * window)
    few = models.random_ids(most, model.config.get_text_config().vocab_size)[:tokens]
    alone = _median(lambda: Reading(model, None, few).run())
    if not is_searched:
        return alone * tokens / len(few)
    ids = few[None, :window]
    empty = _window_seconds(model, 0, ids)
    more = [Cost(0, 0.0), *(Cost(n, _window_seconds(model, n, ids) - empty) for n in sizes)]
    # the few windows had something in memory too
    base = (alone - reading_seconds(more, len(few), window)) * window / len(few)
    return reading_seconds([Cost(n, base + own) for n, own in more], tokens, window)


def _window_seconds(model: Any, memory: int, window: torch.Tensor) -> float:
    import longfocus

    documents = [models.made_up_document(model, memory)] if memory else []
    cache = longfocus.FocusCache(model, documents=documents)

    def read() -> None:
        cache.clear_window()
        model.read_window(cache, window.to(model.device))

    with evaluating(model):
        return _median(read)


def _decode_seconds(model: Any, memory: int, dtype: str) -> float:
    """Seconds of one decoded token."""
    import longfocus

    documents = [models.made_up_document(model, memory).to(dtype)] if memory else []
    cache = longfocus.FocusCache(model, documents=documents)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def decode() -> None:
        mine = cache.fork()
        for _ in range(_DECODED):
            model(token, past_key_values=mine)

    with evaluating(model):
        return _median(decode) / _DECODED


def _median(work: Callable[[], Any]) -> float:
    """Of some repetitions, after one that warms up."""
    work()
    found = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
