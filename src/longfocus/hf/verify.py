"""`attach` proves on a few tokens that an architecture is handled exactly, or refuses it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.call import PassDone
from longfocus.hf.layers import evaluating, vocabulary_size
from longfocus.hf.rotary import identity
from longfocus.hf.window import MemoryLayer

TOKENS = 6


class Reference(NamedTuple):
    """What the plain model says to a few tokens."""

    input_ids: Tensor
    logits: Tensor


def verify_reference(
    model: PreTrainedModel, config: FocusConfig, modules: list[nn.Module]
) -> Reference:
    """Run the plain model; with positions="none" its memory layers get the identity rotation."""
    ids = (torch.arange(1, TOKENS + 1) * 7 % vocabulary_size(model))[None].to(model.device)
    handles = []
    if config.positions == "none":
        handles = [
            m.register_forward_pre_hook(_withhold_rotation, with_kwargs=True) for m in modules
        ]
    try:
        with _undisturbed(model):
            return Reference(ids, model(ids, use_cache=False).logits)
    finally:
        for handle in handles:
            handle.remove()


def verify_attached(model: Any, reference: Reference) -> None:
    """Raise LongFocusError unless the attached model gives the reference's logits and fills every memory."""
    name = type(model).__name__
    short = replace(
        model.focus.config, window=TOKENS, last_context_length=TOKENS, split="when_needed"
    )
    with _undisturbed(model):
        cached = model(reference.input_ids, past_key_values=FocusCache(model, config=short)).logits
        if not torch.equal(cached.nan_to_num(), reference.logits.nan_to_num()):
            worst = (cached - reference.logits).abs().max().item()
            raise LongFocusError(
                f"{name} cannot carry this memory: a short input with an empty memory differs from the plain model by "
                f"{worst:.2g}, so its attention does something that LongFocus does not know. Try other memory layers "
                "(full attention, with rotary positions), and please report the architecture."
            )
        # without a cache, as training runs it
        model(reference.input_ids, use_cache=False)
        windows = FocusCache(
            model, config=replace(short, window=TOKENS // 2, last_context_length=1)
        )
        model(reference.input_ids, past_key_values=windows, use_cache=True)
    stored = {
        i: len(layer.store)
        for i, layer in enumerate(windows.layers)
        if isinstance(layer, MemoryLayer)
    }
    if any(count != TOKENS - 1 for count in stored.values()):
        raise LongFocusError(
            f"{name} cannot carry this memory: after two windows its memory layers hold {stored} tokens instead of "
            f"{TOKENS - 1}, so some layers do not use the cache that they are given. Try other memory layers."
        )


def passes_kwargs(model: PreTrainedModel, module: nn.Module) -> bool:
    """Whether keyword arguments reach `module`, the attention of the attached model's first memory layer.

    Signatures do not tell: StableLM's layers accept them and drop them. So one token is run, up to that layer.
    """
    found: list[bool] = []

    def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        del module, args
        found.append("focus_call" in kwargs)
        raise PassDone

    handle = module.register_forward_pre_hook(look, prepend=True, with_kwargs=True)
    try:
        with _undisturbed(model), suppress(PassDone):
            model(torch.ones(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    return all(found)


def _withhold_rotation(
    module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    del module
    kwargs["position_embeddings"] = identity(kwargs["position_embeddings"])
    return args, kwargs


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """In eval mode without gradients; mode and random state are as before afterwards."""
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        yield
