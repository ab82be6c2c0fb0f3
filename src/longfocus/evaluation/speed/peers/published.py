"""The published LongLLaMA rules, done fairly: our own implementation of what the official code computes.

    every window   all layers run; memory layers see  [all of the memory | the window]  in one attention call, under a
                   mask; then the window's un-rotated keys and its values are concatenated behind the memory

Fairly: weights and memory in the type of the model, torch's fused attention, the mask made once per window, and logits
of the last window only, where the official code computes those of every token. `is_eager` is the official default
instead: weights in float32, scores held as a matrix, memory converted when it is looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longfocus.memory.document import DocumentMemory

Pairs = tuple[Tensor, Tensor]


@dataclass
class State:
    """What is remembered, and the window that is being written."""

    memory: dict[int, Pairs] = field(default_factory=dict)
    local: dict[int, Pairs] = field(default_factory=dict)
    """Un-rotated keys, and values."""

    @property
    def tokens(self) -> int:
        """In the window."""
        return next(iter(self.local.values()))[0].shape[2] if self.local else 0


class Published:
    """A Llama under the published rules, from an attached model whose weights it shares (or copies, if it must)."""

    def __init__(self, model: Any, *, is_eager: bool = False) -> None:
        self.focus = model.focus.config
        self.memory_dtype = model.dtype
        self.is_eager = is_eager
        self.config = model.config
        # modules inside a layer carry no hooks; those of a copy in float32 neither
        self.base = _in_float32(model.model) if is_eager else model.model
        self.head = _in_float32(model.lm_head) if is_eager else model.lm_head

    @torch.no_grad()
    def read(self, ids: Tensor, check: Callable[[], None] = lambda: None) -> State:
        """Read whole windows of token ids `[tokens]` into the memory."""
        state = State()
        for window in ids.split(self.focus.window):
            self._hidden(window[None], state)
            self._remember(state)
            check()
        return state

    @torch.no_grad()
    def logits(self, ids: Tensor, state: State) -> Tensor:
        """Logits of the next tokens `[1, tokens]` of the window, which stay in it."""
        return self.head(self.base.norm(self._hidden(ids, state)))

    def filled(self, document: DocumentMemory) -> State:
        """A state with the pairs of a document in memory."""
        return State({layer: (part.key, part.value) for layer, part in document.layers.items()})

    def _remember(self, state: State) -> None:
        for layer in self.focus.memory_layers:
            new = tuple(pairs.to(self.memory_dtype) for pairs in state.local[layer])
            old = state.memory.get(layer)
            key, value = (
                new if old is None else (torch.cat(p, 2) for p in zip(old, new, strict=True))
            )
            state.memory[layer] = (key, value)
        state.local = {}

    def _hidden(self, ids: Tensor, state: State) -> Tensor:
        hidden = self.base.embed_tokens(ids)
        start, length = state.tokens, ids.shape[1]
        cos, sin = self.base.rotary_emb(hidden, torch.arange(start + length)[None])
        masks: dict[int, Tensor] = {}
        for number, layer in enumerate(self.base.layers):
            attention = layer.self_attn
            found = layer.input_layernorm(hidden)
            query, key, value = (
                projection(found).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            key, value = self._into_window(state, number, key, value)
            query = _rotated(query, cos[:, start:], sin[:, start:])
            keys, values = self._with_memory(state, number, _rotated(key, cos, sin), value)
            if keys.shape[2] not in masks:
                masks[keys.shape[2]] = _mask(query, keys.shape[2])
            seen = self._attend(query, keys, values, masks[keys.shape[2]])
            seen = seen.transpose(1, 2).flatten(2)
            hidden = hidden + attention.o_proj(seen)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden

    @staticmethod
    def _into_window(state: State, layer: int, key: Tensor, value: Tensor) -> Pairs:
        if layer in state.local:
            old = state.local[layer]
            key, value = torch.cat([old[0], key], 2), torch.cat([old[1], value], 2)
        state.local[layer] = (key, value)
        return key, value

    @staticmethod
    def _with_memory(state: State, layer: int, key: Tensor, value: Tensor) -> Pairs:
        if layer not in state.memory:
            return key, value
        old = state.memory[layer]
        return torch.cat([old[0].to(key.dtype), key], 2), torch.cat(
            [old[1].to(key.dtype), value], 2
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        if not self.is_eager:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, enable_gqa=groups > 1
            )
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.mT * query.shape[-1] ** -0.5 + mask
        return scores.softmax(-1, dtype=torch.float32) @ value


def _mask(query: Tensor, keys: int) -> Tensor:
    """All of the memory and, of the window, what stands before: the last query sees the last key."""
    length = query.shape[2]
    seen = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
    return torch.zeros(1, 1, length, keys, dtype=query.dtype).masked_fill_(~seen, -torch.inf)


def _rotated(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = vectors.chunk(2, -1)
    return vectors * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def _in_float32(module: Any) -> Any:
    from copy import deepcopy

    return deepcopy(module).float()
