"""Plain full attention in transformers: the stock model, its DynamicCache and torch's fused attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Full:
    """A stock model that sees every token in every layer."""

    def __init__(self, stock: Any) -> None:
        self.model = stock

    @torch.no_grad()
    def read(self, ids: Tensor, check: Callable[[], None] = lambda: None) -> Any:
        """Read token ids `[tokens]` in one pass, as `generate` does; asks after every layer whether to go on."""
        from transformers import DynamicCache

        cache = DynamicCache()
        hooks = [
            layer.register_forward_hook(lambda *_: check()) for layer in self.model.model.layers
        ]
        try:
            self.model(ids[None], past_key_values=cache, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return cache

    @torch.no_grad()
    def logits(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits of the next tokens `[1, tokens]`, which stay in the cache."""
        return self.model(ids, past_key_values=cache).logits

    def filled(self, pairs: Callable[[int], Tensor]) -> Any:
        """A cache of what `pairs` makes, keys of a layer from an even number and values from the next."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(self.model.config.num_hidden_layers):
            cache.update(pairs(2 * layer), pairs(2 * layer + 1), layer)
        return cache

    def bytes_per_token(self) -> int:
        config = self.model.config
        width = config.num_key_value_heads * config.head_dim
        return 2 * config.num_hidden_layers * width * self.model.dtype.itemsize
