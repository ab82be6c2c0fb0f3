"""FAISS flat: the exact top-k search over float32 keys that the paper uses (`pip install longfocus[faiss]`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

TOP_K = 32
"""Keys per query in the paper's comparisons."""


class FaissFlat:
    """The keys of one head in an index."""

    def __init__(self, keys: Tensor, threads: int = 1) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.index: Any = faiss.IndexFlatIP(keys.shape[1])
        self.index.add(_array(keys))

    def search(self, queries: Tensor, k: int = TOP_K) -> tuple[Tensor, Tensor]:
        """Inner products and places of the best keys of every query `[queries, dim]`; no value is looked at."""
        scores, places = self.index.search(_array(queries), k)
        return torch.from_numpy(scores), torch.from_numpy(places)


def is_there() -> bool:
    """Whether faiss is installed."""
    from importlib.util import find_spec

    return find_spec("faiss") is not None


def _array(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.float().numpy())
