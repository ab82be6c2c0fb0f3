"""A plain oracle: the logits of any stock model with memory, from one forward pass without any cache.

It knows nothing of LongFocus. The whole text goes through the stock model once; every attention is the full
matrix formula, in which two tokens may see each other in one of two ways:

    keys      window 0 | window 1 | window 2
    queries 0   LOCAL  |          |             LOCAL   causal, inside the window, the layer's sliding window
            1   MEMORY |  LOCAL   |             MEMORY  memory layers only: everything earlier, keys rotated
            2   MEMORY |  MEMORY  |  LOCAL              as if they stood at the first position of a window

Rotated queries and keys are the model's own: its attention function is replaced for the duration of the call.
Keys at the first position come from calling the attention module a second time with that position's embedding,
so this file contains no rotary formula. Cost is quadratic in the whole text: small models and short texts only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "longfocus_test_oracle"


@dataclass(frozen=True)
class Memory:
    """How the oracle's memory layers look beyond their window."""

    layers: Sequence[int]
    positions: str = "window_start"
    """`window_start`, `none` or `true`, as in FocusConfig."""

    top_k: int | None = None
    """Memory keys per query and query head; None: all of them."""

    dtype: torch.dtype | None = None
    """Type through which memory keys and values are rounded."""

    gates: dict[int, Tensor] = field(default_factory=dict)
    """Per layer, one number per query head: its sigmoid weighs the memory. Absent: one joint softmax."""


@torch.no_grad()
def oracle_logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    starts: Sequence[int],
    memory: Memory,
    *,
    attention_mask: Tensor | None = None,
    local_positions: Tensor | None = None,
) -> Tensor:
    """Logits [batch, length, vocabulary] of `input_ids` [batch, length] whose windows begin at `starts`.

    `local_positions` default to the number of real tokens before each token in its window. Logits of padded
    positions are finite but mean nothing.
    """
    valid = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    windows = window_of_each_token(starts, input_ids.shape[1])
    if local_positions is None:
        local_positions = count_before(
            valid, windows if memory.positions != "true" else torch.zeros_like(windows)
        )
    sight = Sight(windows, valid, local_positions, memory)
    with attention_replaced(model, sight), ExitStack() as wrapped:
        for layer, module in attention_modules(model).items():
            if layer in memory.layers:
                wrapped.enter_context(keys_seen_from_memory(module, sight))
        return model(input_ids=input_ids, position_ids=local_positions, use_cache=False).logits


def window_starts(length: int, kept: int, window: int, new_tokens: int = 0) -> list[int]:
    """First tokens of all windows: a prompt of `length` tokens, then `new_tokens` one at a time.

    The prompt but for its last `kept` tokens is cut from the left; while decoding, a full window is evicted.
    """
    last = max(length - kept, 0)
    starts = [*range(0, last, window), last]
    for token in range(length, length + new_tokens):
        if token + 1 - starts[-1] > window:
            starts.append(token)
    return starts


def window_of_each_token(starts: Sequence[int], length: int) -> Tensor:
    """Number of the window of each token [length]; the first window begins at token 0."""
    assert starts[0] == 0
    assert list(starts) == sorted(set(starts))
    return torch.bucketize(torch.arange(length), torch.tensor(starts), right=True) - 1


def count_before(valid: Tensor, windows: Tensor) -> Tensor:
    """Real tokens [batch, length] before each token inside its own window; 0 for padding on the left."""
    same_window_and_earlier = (windows[:, None] == windows[None, :]) & earlier(len(windows))
    return (valid[:, None, :] & same_window_and_earlier).sum(-1)


def earlier(length: int) -> Tensor:
    """[query, key]: does the key stand strictly before the query?"""
    return torch.ones(length, length).tril(-1).bool()


class Sight:
    """Who sees whom in one oracle call; also the attention function of that call."""

    def __init__(self, windows: Tensor, valid: Tensor, positions: Tensor, memory: Memory) -> None:
        self.windows, self.valid, self.positions, self.memory = windows, valid, positions, memory
        self.catching_keys = False
        self.memory_keys: dict[int, Tensor] = {}

    def local(self, sliding_window: int | None) -> Tensor:
        """[batch, 1, query, key]: the ordinary causal attention of a layer, inside each window."""
        index = torch.arange(len(self.windows))
        distance = index[:, None] - index[None, :]
        seen = (distance >= 0) & (self.windows[:, None] == self.windows[None, :])
        if sliding_window is not None:
            seen &= distance < sliding_window
        return (seen & self.valid[:, None, :])[:, None]

    def remembered(self) -> Tensor:
        """[batch, 1, query, key]: real tokens of all earlier windows of the same row."""
        seen = self.windows[:, None] > self.windows[None, :]
        return (seen & self.valid[:, None, :])[:, None]

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **ignored: Any,
    ) -> tuple[Tensor, None]:
        """transformers' attention interface: [batch, heads, length, dim] in, [batch, length, heads, dim] out."""
        if self.catching_keys:
            self.memory_keys[module.layer_idx] = key
            return torch.zeros_like(query).transpose(1, 2), None

        def scores(keys: Tensor) -> Tensor:
            return capped(query @ per_query_head(keys, query).mT * scaling, softcap)

        values = per_query_head(value, query)
        local_scores = hide(scores(key), self.local(sliding_window))
        if module.layer_idx not in self.memory.layers:
            return softmax_values([(local_scores, values)], s_aux).transpose(1, 2), None
        memory_key, memory_value = self.memory_keys[module.layer_idx], values
        if self.memory.dtype is not None:
            memory_key = memory_key.to(self.memory.dtype).to(key.dtype)
            memory_value = memory_value.to(self.memory.dtype).to(value.dtype)
        memory_scores = keep_top(hide(scores(memory_key), self.remembered()), self.memory.top_k)
        local, remembered = (local_scores, values), (memory_scores, memory_value)
        gate = self.memory.gates.get(module.layer_idx)
        if gate is None:
            return softmax_values([local, remembered], s_aux).transpose(1, 2), None
        # A query without any memory uses its window alone.
        share = torch.sigmoid(gate).view(1, -1, 1, 1) * self.remembered().any(-1, keepdim=True)
        window, memory = softmax_values([local], s_aux), softmax_values([remembered], s_aux)
        return ((1 - share) * window + share * memory).transpose(1, 2), None


def per_query_head(keys: Tensor, query: Tensor) -> Tensor:
    """Repeats each KV head for the query heads that share it."""
    return keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def hide(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores of hidden keys become very small but finite, so a query that sees nothing gives no NaN."""
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min)


def keep_top(scores: Tensor, top_k: int | None) -> Tensor:
    """Hides all but the `top_k` best scores of each query and head."""
    if top_k is None or top_k >= scores.shape[-1]:
        return scores
    best = torch.zeros_like(scores).bool().scatter(-1, scores.topk(top_k, dim=-1).indices, True)
    return hide(scores, best)


def softmax_values(sources: list[tuple[Tensor, Tensor]], sinks: Tensor | None) -> Tensor:
    """One softmax over the scores of all sources (and one sink per head, which has no value)."""
    scores = torch.cat([scores for scores, _ in sources], dim=-1)
    values = torch.cat([values for _, values in sources], dim=-2)
    if sinks is not None:
        sinks = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights @ values


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each layer, found by what transformers calls them in every architecture here."""
    named = {"self_attn", "attention"}
    return {m.layer_idx: m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in named}


@contextmanager
def attention_replaced(model: PreTrainedModel, sight: Sight) -> Iterator[None]:
    """All layers use the oracle's attention function, which ignores the masks that the model prepares."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, sight.attention)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS._global_mapping[NAME]


@contextmanager
def keys_seen_from_memory(module: nn.Module, sight: Sight) -> Iterator[None]:
    """Before each call of a memory layer's attention, records its keys as the memory will hold them."""
    plain_forward: Callable[..., Any] = module.forward

    def forward(*args: Any, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        if sight.memory.positions == "none":
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        sight.catching_keys = True
        plain_forward(*args, position_embeddings=as_remembered(cos, sin, sight), **kwargs)
        sight.catching_keys = False
        return plain_forward(*args, position_embeddings=(cos, sin), **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def as_remembered(cos: Tensor, sin: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """The position embedding of a memory key: that of a token at local position 0, or its own for `true`."""
    if sight.memory.positions == "true":
        return cos, sin
    rows, first = torch.arange(len(cos)), sight.positions.eq(0).int().argmax(-1)
    return (cos[rows, first][:, None].expand_as(cos), sin[rows, first][:, None].expand_as(sin))
