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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from longfocus.core.additional import AdditionalContexts
from longfocus.core.attention import Partial, attend, gate, merge, sink
from longfocus.core.blocked import Scoring
from longfocus.core.crossbatch import Pool, attend_jointly, attend_rows
from longfocus.errors import LongFocusError
from longfocus.hf.call import Call, LayerCall, PassDone
from longfocus.hf.rotary import Rotary
from longfocus.hf.window import MemoryLayer
from longfocus.memory import Part

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
        raise PassDone
    query, key, first_key = _rotate(focus_layer, query, key)
    if call.stops_after == focus_layer.layer:
        raise PassDone
    layer = None if call.cache is None else call.cache.windows[focus_layer.layer]
    parts = layer.parts() if isinstance(layer, MemoryLayer) else []
    contexts = call.contexts if call.contexts is not None and call.contexts.plan.shape[1] else None
    if call.trace is not None and call.traced:
        call.trace.begin(focus_layer.layer, query.shape[0], call.traced)
    if not parts and contexts is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    own = _own_window(query, attention_mask, _scoring(module, query, kwargs, call.passed))
    beside = _Beside(
        kwargs.get("s_aux"), getattr(module, GATE) if call.config.merge == "gate" else None
    )
    if contexts is None:
        joint = _with_memory(focus_layer, query, key, value, parts, own, beside)
    else:
        pool = contexts.pool(first_key, value)
        joint = _with_contexts(focus_layer, query, key, value, pool, contexts, own, beside)
    return joint.to(query.dtype).transpose(1, 2).contiguous(), None


class _Beside(NamedTuple):
    """What takes part in a layer's softmax, or mixes what comes out of two."""

    sinks: Tensor | None
    gates: Tensor | None

    def join(self, local: Partial, other: Partial) -> Partial:
        """Attention over the window and what lies beyond it."""
        local = local if self.sinks is None else sink(local, self.sinks)
        return merge([local, other]) if self.gates is None else gate(local, other, self.gates)


def _with_memory(
    focus: LayerCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: Sequence[Part],
    own: Scoring,
    beside: _Beside,
) -> Tensor:
    call, traced = focus.call, focus.call.traced
    if is_last_look := call.looks_last == focus.layer:
        # the other tokens have no use for what they would see
        query = query[:, :, -traced:]
        own = replace(own, bias=None if own.bias is None else own.bias[:, :, -traced:])
    scoring = {"scale": own.scale, "softcap": own.softcap}
    assert call.cache is not None, "only a cache has parts"
    other = call.cache.searches[focus.layer](query, parts, **scoring)
    joint = beside.join(_local(query, key, value, own), other)
    if call.trace is not None and traced:
        # with a gate, exp(score) is divided by the memory's own sum, and the result takes the gate's share
        total = joint.lse
        if beside.gates is not None:
            total = other.lse - functional.logsigmoid(beside.gates)[:, None]
        top_k = call.config.top_k if call.config.search in ("exact", "faiss") else None
        last, total = query[:, :, -traced:], total[:, :, -traced:]
        call.trace.look(focus.layer, last, parts, total, top_k=top_k, **scoring)
    if is_last_look:
        raise PassDone
    return joint.output


def _with_contexts(
    focus: LayerCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pool: Pool,
    contexts: AdditionalContexts,
    own: Scoring,
    beside: _Beside,
) -> Tensor:
    if contexts.mass is not None:
        contexts.mass.look(focus.layer, query, pool, contexts.plan, own, contexts.valid)
    if beside.gates is None:
        return attend_jointly(query, key, value, pool, contexts.plan, own, beside.sinks)
    other = attend_rows(query, pool, contexts.plan, scale=own.scale, softcap=own.softcap)
    return beside.join(_local(query, key, value, own), other).output


def _local(query: Tensor, key: Tensor, value: Tensor, own: Scoring) -> Partial:
    return attend(
        query,
        key,
        value,
        scale=own.scale,
        softcap=own.softcap,
        bias=own.bias,
        causal=own.causal,
    )


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
