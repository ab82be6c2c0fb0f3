"""`KNNMemory` of lucidrains' memorizing-transformers-pytorch: a graph index (HNSW) over keys, and pairs in a file.

Only this part of the package is compared: adding pairs, and finding the best 32 for a window of queries. Its
requirements name faiss-gpu, which brings gigabytes of CUDA and overwrites faiss-cpu, so it is no part of an extra:

    pip install --no-deps memorizing-transformers-pytorch && pip install faiss-cpu einops-exts joblib
"""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longfocus.evaluation.speed.peers.faiss_flat import TOP_K

HOW = "pip install --no-deps memorizing-transformers-pytorch && pip install faiss-cpu einops-exts joblib"


class Memorizing:
    """Pairs of one head in a memory of that package."""

    def __init__(self, dim: int, most: int, threads: int = 1) -> None:
        import faiss

        # no extra brings it, so that type checkers cannot see it
        package = import_module("memorizing_transformers_pytorch.knn_memory")
        faiss.omp_set_num_threads(threads)
        self._folder = tempfile.TemporaryDirectory(prefix="longfocus-bench-")
        self.memory: Any = package.KNNMemory(
            dim=dim,
            max_memories=most,
            memmap_filename=str(Path(self._folder.name) / "pairs"),
            multiprocessing=False,
        )

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Pairs `[tokens, dim]`."""
        self.memory.add(torch.stack([keys, values], 1).float()[None])

    def search(self, queries: Tensor, k: int = TOP_K) -> Tensor:
        """The pairs `[queries, k, 2, dim]` found for queries `[queries, dim]`."""
        found, _ = self.memory.search(queries.float()[None], k, increment_hits=False)
        return found[0]

    def close(self) -> None:
        del self.memory
        self._folder.cleanup()


def is_there() -> bool:
    """Whether the package and what it needs are installed."""
    from importlib.util import find_spec

    needed = ("faiss", "einops_exts", "joblib", "memorizing_transformers_pytorch")
    return all(find_spec(name) is not None for name in needed)
