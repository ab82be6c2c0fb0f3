"""Crossbatch by the plain formula, with gradients: loss and logits of any stock model with a plan.

Every row's queries see their own window, causally, and every real token of the rows that its plan lists, as keys at
the window's first position; one softmax. Rotated keys are the model's own, as in oracle.py.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from oracle import (
    Memory,
    Sight,
    attention_modules,
    attention_replaced,
    hide,
    keys_seen_from_memory,
    per_query_head,
    softmax_values,
)


class CrossbatchSight(Sight):
    """Who sees whom in one crossbatch call."""

    def __init__(
        self, plan: Tensor, valid: Tensor, memory: Memory, *, detached: bool = False
    ) -> None:
        rows, length = valid.shape
        positions = torch.arange(length).expand(rows, -1)
        super().__init__(torch.zeros(length, dtype=torch.long), valid, positions, memory)
        self.plan, self.detached = plan, detached

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if self.catching_keys or module.layer_idx not in self.memory.layers:
            return super().attention(module, query, key, value, *args, **kwargs)
        listed = self.plan.clamp(min=0)
        softcap = kwargs.get("softcap")

        def scores(keys: Tensor) -> Tensor:
            plain = query @ per_query_head(keys, query).mT * kwargs["scaling"]
            return plain if softcap is None else softcap * torch.tanh(plain / softcap)

        def listed_rows(pairs: Tensor) -> Tensor:
            # (rows, contexts, heads, length, dim) -> (rows, heads, contexts * length, dim)
            pairs = pairs.detach() if self.detached else pairs
            return pairs[listed].transpose(1, 2).flatten(2, 3)

        seen = (self.valid[listed] & (self.plan >= 0)[..., None]).flatten(1)[:, None, None]
        local = hide(scores(key), self.local(kwargs.get("sliding_window")))
        others = hide(scores(listed_rows(self.memory_keys[module.layer_idx])), seen)
        sources = [
            (local, per_query_head(value, query)),
            (others, per_query_head(listed_rows(value), query)),
        ]
        return softmax_values(sources, kwargs.get("s_aux")).transpose(1, 2), None


def crossbatch_oracle(
    model: PreTrainedModel,
    plan: Tensor,
    memory: Memory,
    batch: dict[str, Tensor],
    *,
    detached: bool = False,
) -> Any:
    """The stock model's output (loss and logits) for `batch`, a window per row, with gradients.

    `detached`: listed rows take none.
    """
    input_ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    valid = torch.ones_like(input_ids).bool() if mask is None else mask.bool()
    sight = CrossbatchSight(plan, valid, memory, detached=detached)
    with attention_replaced(model, sight), ExitStack() as wrapped:
        for layer, module in attention_modules(model).items():
            if layer in memory.layers:
                wrapped.enter_context(keys_seen_from_memory(module, sight))
        return model(
            input_ids=input_ids,
            position_ids=sight.positions,
            labels=batch["labels"],
            use_cache=False,
        )
