"""The attention functions `focus_<base>`: what a memory layer computes inside a stock model.

    stock attention module                      a pre-hook gave it the identity rotation, so that
      q, k, v un-rotated                        its own code hands over un-rotated queries and keys
      cache.update(k, v) -> window, un-rotated
      focus_<base>(module, q, k, v, mask)
        rotate q and the new k                  the architecture's own apply_rotary_pos_emb
        nothing but the window to see?          -> the base function: bit for bit the plain model
        a plan (training)?                      -> crossbatch attention
        memory?                                 -> merge(window, search of all parts)

Layers without memory go straight to the base function. What a call needs travels in kwargs, or in the cache for
architectures that drop unknown kwargs; never in module or global state.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from longfocus.config import FocusConfig
from longfocus.core.additional import AdditionalContexts
from longfocus.core.attention import attend, gate, merge, sink
from longfocus.core.blocked import Scoring
from longfocus.core.crossbatch import attend_jointly, attend_rows
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.rotary import CosSin, Rotary, identity
from longfocus.hf.trace import Trace
from longfocus.hf.window import MemoryLayer

PREFIX = "focus_"
GATE = "focus_gate"

# Keyword arguments of attention functions that change nothing in what memory attention computes.
_HARMLESS = {
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "sliding_window",
    "use_cache",
}


class ReadingDone(Exception):
    """The last memory layer has stored a window that is only read; nothing after it can matter."""


@dataclass(frozen=True)
class Call:
    """What one forward pass of an attached model tells its memory layers."""

    config: FocusConfig
    cache: FocusCache | None = None
    contexts: AdditionalContexts | None = None
    """Other rows that a row sees in a crossbatch, checked."""
    stops_after: int | None = None
    """Layer after whose keys and values the pass may stop, in a window that is only read."""
    trace: Trace | None = None
    traced: int = 0
    """How many of the pass's last tokens are recorded in `trace`."""
    passed: frozenset[str] = frozenset()
    """Names of keyword arguments that the caller of the model passed down; they are not the attention's."""
    _identities: list[tuple[Tensor, CosSin]] = field(default_factory=list, repr=False)

    def identity(self, rotation: CosSin) -> CosSin:
        """The rotation that changes nothing; layers share one where they share their rotation."""
        for cos, made in self._identities:
            if cos is rotation[0]:
                return made
        made = identity(rotation)
        self._identities.append((rotation[0], made))
        return made


@dataclass(frozen=True)
class LayerCall:
    """A `Call` at one memory layer, with the true rotation that the hook withheld from the module."""

    call: Call
    layer: int
    rotary: Rotary
    position_embeddings: CosSin


class FocusHook:
    """Forward pre-hook of a memory layer's attention module: withholds the rotation and finds the call."""

    def __init__(self, layer: int, rotary: Rotary) -> None:
        self.layer, self.rotary = layer, rotary

    def __call__(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        # the two names that architectures use for their cache
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        call = kwargs.pop("focus_call", None) or getattr(cache, "call", None)
        if call is None or "position_embeddings" not in kwargs:
            raise LongFocusError(
                f"A memory layer of {type(module).__name__} was run outside of the attached model's forward, so it "
                "cannot know its memory. Call the model itself, not model.model; attach before accelerate or "
                "device_map wrap it; and turn gradient checkpointing off for this architecture, which drops what a "
                "recomputed layer needs."
            )
        rotation = kwargs["position_embeddings"]
        kwargs["position_embeddings"] = call.identity(rotation)
        kwargs["focus_layer"] = LayerCall(call, self.layer, self.rotary, rotation)
        return args, kwargs


def register(base: str) -> str:
    """Register `focus_<base>` for attention and masks; returns its name."""
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_focus_attention, base))
    if name not in ALL_MASK_ATTENTION_FUNCTIONS:
        # without a mask function of its own a model would get no mask, and padding would be ignored
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _focus_attention(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    focus_layer: LayerCall | None = None,
    focus_call: Call | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    del focus_call
    plain = _base_function(base, module)
    if focus_layer is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    call = focus_layer.call
    if call.stops_after == focus_layer.layer and call.config.positions != "true":
        raise ReadingDone
    query, key, first_key = _rotate(focus_layer, query, key)
    if call.stops_after == focus_layer.layer:
        raise ReadingDone
    layer = None if call.cache is None else call.cache.windows[focus_layer.layer]
    parts = layer.parts() if isinstance(layer, MemoryLayer) else []
    contexts = call.contexts if call.contexts is not None and call.contexts.plan.shape[1] else None
    trace = call.trace if call.traced else None
    if trace is not None:
        trace.begin(focus_layer.layer, query.shape[0], call.traced)
    if not parts and contexts is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    scoring = _scoring(module, query, kwargs, call.passed)
    own = _own_window(query, attention_mask, scoring)
    sinks = kwargs.get("s_aux")
    gates = getattr(module, GATE) if call.config.merge == "gate" else None
    if contexts is not None:
        pool = contexts.pool(first_key, value)
        if contexts.mass is not None:
            contexts.mass.look(focus_layer.layer, query, pool, contexts.plan, own, contexts.valid)
        if gates is None:
            output = attend_jointly(query, key, value, pool, contexts.plan, own, sinks)
            return output.transpose(1, 2).contiguous(), None
        other = attend_rows(query, pool, contexts.plan, **scoring)
    else:
        assert call.cache is not None, "only a cache has parts"
        other = call.cache.searches[focus_layer.layer](query, parts, **scoring)
    local = attend(query, key, value, bias=own.bias, causal=own.causal, **scoring)
    local = local if sinks is None else sink(local, sinks)
    joint = merge([local, other]) if gates is None else gate(local, other, gates)
    if trace is not None and parts:
        # with a gate, exp(score) is divided by the memory's own sum, and the result takes the gate's share
        gated = None if gates is None else other.lse - functional.logsigmoid(gates)[:, None]
        top_k = call.config.top_k if call.config.search in ("exact", "faiss") else None
        total = joint.lse if gated is None else gated
        last, total = query[:, :, -call.traced :], total[:, :, -call.traced :]
        trace.look(focus_layer.layer, last, parts, total, top_k=top_k, **scoring)
    return joint.output.to(query.dtype).transpose(1, 2).contiguous(), None


def _rotate(focus: LayerCall, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys of the whole window, and its keys as at the first position."""
    if focus.call.config.positions == "none" or not focus.rotary.is_used:
        return query, key, key
    new = key[:, :, -query.shape[2] :]
    in_crossbatch = focus.call.contexts is not None
    first_key = focus.rotary.at_first_position(key) if in_crossbatch else key
    query, new = focus.rotary.rotate(query, new, focus.position_embeddings)
    if in_crossbatch and focus.call.config.positions == "true":
        first_key = new
    layer = None if focus.call.cache is None else focus.call.cache.windows[focus.layer]
    return query, layer.push_rotated(new) if isinstance(layer, MemoryLayer) else new, first_key


def _own_window(query: Tensor, mask: Tensor | None, scoring: dict[str, Any]) -> Scoring:
    """How the window is scored under the mask that the model made for it."""
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    return Scoring(bias=bias, causal=mask is None and query.shape[2] > 1, **scoring)


def _scoring(
    module: nn.Module, query: Tensor, kwargs: dict[str, Any], passed: frozenset[str]
) -> dict[str, Any]:
    """Scale and softcap of the module's scores; refuses what a merged softmax could not honour."""
    known = _HARMLESS | {"scaling", "dropout", "softcap", "s_aux"} | passed
    unknown = sorted(
        name for name, value in kwargs.items() if name not in known and value is not None
    )
    if unknown:
        raise LongFocusError(
            f"{type(module).__name__} passes {unknown} to its attention, which memory attention does not know how to "
            "honour. Please report the architecture; until then it cannot use its memory."
        )
    if kwargs.get("dropout") and module.training:
        raise LongFocusError(
            f"Memory layers do not support attention dropout. Got {kwargs['dropout']}. "
            "Set model.config.attention_dropout = 0 before attaching."
        )
    scale = kwargs.get("scaling")
    return {
        "scale": query.shape[-1] ** -0.5 if scale is None else scale,
        "softcap": kwargs.get("softcap"),
    }


def _base_function(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if base == "eager":
        # not in transformers' table: every architecture has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[base]
