"""Dense search: attend to all of the memory, as LongLLaMA does. Leaves nothing out."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from longfocus.core.attention import Partial, merge, nothing
from longfocus.memory.base import Part


def dense(
    query: Float[Tensor, "batch heads query dim"],
    parts: Sequence[Part],
    *,
    scale: float,
    softcap: float | None = None,
) -> Partial:
    """Attention over all pairs of all parts."""
    if not parts:
        return nothing(query)
    return merge([part.attend(query, scale=scale, softcap=softcap) for part in parts])
