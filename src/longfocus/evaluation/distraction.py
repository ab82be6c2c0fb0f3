"""How the attention on a memory is shared among its documents, exactly: by the log-sum-exp of each document's part."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.core.attention import Partial, merge
from longfocus.evaluation.contexts import window_logits
from longfocus.hf.cache import FocusCache
from longfocus.memory import Part

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject
    from longfocus.inference.session import Session


class _Noting:
    """Dense search that notes the share of every part."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []

    def __call__(
        self,
        query: Float[Tensor, "batch heads query dim"],
        parts: Sequence[Part],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial:
        found = [part.attend(query, scale=scale, softcap=softcap) for part in parts]
        # (parts, heads, query)
        self.shares.append(torch.stack([own.lse[0] for own in found]).softmax(0))
        return merge(found)


@torch.inference_mode()
def shares(
    subject: "Subject", session: "Session", window: Int[Tensor, " tokens"]
) -> dict[int, Float[Tensor, "documents heads query"]]:
    """By memory layer, the share of every document of the session in each query's attention on all of them."""
    noting = {layer: _Noting() for layer in subject.model.focus.config.memory_layers}
    cache = FocusCache(subject.model, session.documents, searches=noting)
    window_logits(subject, window, cache)
    # the cache has an order of its own
    numbers = [cache.documents.index(document) for document in session.documents]
    return {layer: torch.cat(own.shares, 2)[numbers] for layer, own in noting.items()}
