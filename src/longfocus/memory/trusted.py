"""Whether pairs may be trusted: those of a file are verified before they are looked at, and all are finite.

One pair that is NaN or infinite would spoil every later answer.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from longfocus.core.runs import Runs


@runtime_checkable
class PairsFile(Protocol):
    """The file that pairs are mapped from. Raises LongFocusError where it was altered."""

    def verify(self) -> None:
        """All of the pairs are what was written."""

    def verify_clusters(self) -> None:
        """What `Clusters` says is what was written; nothing is said of the pairs."""

    def announce(self, line: int, kv_head: int, runs: Runs) -> None:
        """Have the system begin to load some runs of pairs of one line and KV head."""

    def fetch(self, line: int, kv_head: int, runs: Runs) -> None:
        """Load and verify them."""


def are_finite(numbers: Shaped[Tensor, "..."]) -> bool:
    """Whether none is NaN or infinite; least and largest are found many times faster than `isfinite` tests each."""
    return not numbers.numel() or bool(torch.stack(numbers.aminmax()).isfinite().all())
