"""What rows remember of the document that they go on with: pairs that only some queries of a window may see."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longfocus.core.attention import Partial
from longfocus.memory.base import Hits, Part


@dataclass(frozen=True)
class ContinuedPart(Part):
    """A part for windows in which one document may end and the next begin: only the queries of one of them look.

    A mark per query and one per key (`valid`) say all, where a mask of queries by keys would be as large as scores.
    """

    sees: Bool[Tensor, "batch query"] = field(kw_only=True)
    """Queries that may look; to the others the part is empty."""

    def attend(
        self,
        query: Float[Tensor, "batch heads query dim"],
        *,
        scale: float,
        softcap: float | None = None,
    ) -> Partial:
        found = super().attend(query, scale=scale, softcap=softcap)
        sees = self.sees[:, None]
        return Partial(
            found.output.masked_fill(~sees[..., None], 0.0),
            found.lse.masked_fill(~sees, -torch.inf),
        )

    def search(
        self, query: Float[Tensor, "batch heads query dim"], k: int, *, scale: float
    ) -> Hits:
        hits = super().search(query, k, scale=scale)
        scores = hits.scores.masked_fill(~self.sees[:, None, :, None], -torch.inf)
        return Hits(scores, hits.positions)
