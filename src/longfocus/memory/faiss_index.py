"""A FAISS index over the keys of one line and KV head, and all that is known of FAISS here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longfocus.errors import LongFocusError, extra
from longfocus.memory.base import Part

FLAT = "Flat"
RETRAIN_GROWTH = 4
"""An index is trained again when it holds so many times as many pairs."""
# Pairs that are converted to float32 at a time.
_BLOCK = 2**16
_LEAST_TRAINED, _TRAINED_PER_LIST = 1024, 64
_SEED = 20230706
# How far an index looks, at first: named as FAISS names it.
_EFFORT = {"nprobe": 8, "efSearch": 64, "quantizer_efSearch": 64}
_MOST_EFFORT = 2**30


class Index:
    """A FAISS index over the real pairs of one line and KV head."""

    def __init__(self, factory: str) -> None:
        self._factory = factory
        self._index: Any = None
        self._length = self._trained_on = 0
        self._places: Tensor | None = None
        self._effort: dict[str, int] = {}

    def cover(self, part: Part, line: int, kv_head: int) -> None:
        """Hold all real pairs of the part, which begin with those that it holds."""
        if self._length == len(part):
            return
        real = torch.arange(len(part))
        if part.valid is not None:
            real = part.valid[line].nonzero()[:, 0].cpu()
        self._places = None if len(real) == len(part) else real
        keys = _Keys(part, line, kv_head, real)
        if self._index is None or self._is_outgrown(len(real)):
            self._make(keys)
        with _told(self._factory):
            for some in keys.blocks(self._index.ntotal):
                self._index.add(some)
        self._length = len(part)

    def search(
        self, query: Float[Tensor, "queries dim"], k: int, width: int
    ) -> Int[Tensor, "queries k"]:
        """Places of pairs with large inner products, -1 where there are fewer than k."""
        if self._places is not None and not len(self._places):
            return torch.full((len(query), k), -1)
        faiss = library()
        faiss.omp_set_num_threads(torch.get_num_threads())
        for name, least in self._effort.items():
            effort = min(least * width, _MOST_EFFORT)
            faiss.ParameterSpace().set_index_parameter(self._index, name, effort)
        found = torch.from_numpy(self._index.search(_array(query), k)[1])
        if self._places is None:
            return found
        return torch.where(found < 0, -1, self._places[found.clamp(min=0)])

    def _is_outgrown(self, pairs: int) -> bool:
        return bool(self._trained_on) and pairs >= RETRAIN_GROWTH * self._trained_on

    def _make(self, keys: "_Keys") -> None:
        """A new index, trained if it must be; a flat one for pairs that are too few to train on."""
        index = new_index(self._factory, keys.dim)
        lists = library().try_extract_index_ivf(index)
        count = 1 if lists is None else lists.nlist
        self._trained_on = 0
        if not index.is_trained:
            # a flat index is outgrown at once when there are enough
            enough = max(4 * count, _LEAST_TRAINED)
            self._trained_on = max(len(keys), 1)
            if len(keys) < enough:
                self._trained_on = -(-enough // RETRAIN_GROWTH)
                index = new_index(FLAT, keys.dim)
            else:
                with _told(self._factory):
                    index.train(keys.sample(count))
        self._index = index
        efforts = _EFFORT | {"nprobe": max(_EFFORT["nprobe"], count // 32)}
        self._effort = {name: least for name, least in efforts.items() if _has(index, name)}


@dataclass(frozen=True)
class _Keys:
    """The real keys of one line and KV head as arrays of float32."""

    part: Part
    line: int
    kv_head: int
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    @property
    def dim(self) -> int:
        return self.part.key.shape[3]

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        for places in self.places[start:].split(_BLOCK):
            if len(places):
                yield self._at(places)

    def sample(self, lists: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(_SEED)
        some = torch.randperm(len(self), generator=generator)[
            : max(_BLOCK, _TRAINED_PER_LIST * lists)
        ]
        return self._at(self.places[some])

    def _at(self, places: Tensor) -> np.ndarray:
        return _array(self.part.own_keys(self.line, self.kv_head, places.to(self.part.key.device)))


def library() -> Any:
    with extra("faiss", "search='faiss'"):
        import faiss
    return faiss


def new_index(factory: str, dim: int) -> Any:
    faiss = library()
    with _told(factory):
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        # FAISS would print that it wants more pairs to train on; the audit says what the index misses
        lists.cp.min_points_per_centroid = 1
    return index


def _has(index: Any, name: str) -> bool:
    try:
        library().ParameterSpace().set_index_parameter(index, name, _EFFORT[name])
    except RuntimeError:
        return False
    return True


@contextmanager
def _told(factory: str) -> Iterator[None]:
    """Errors of FAISS as ours."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].strip()
        raise LongFocusError(
            f"FAISS cannot make the index {factory!r}: {reason} Allowed are factory strings for inner products, such "
            "as 'Flat', 'HNSW32', 'IVF1024,Flat', 'IVF256,SQ8'; see 'The index factory' in the FAISS wiki."
        ) from error


def _array(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.detach().float().cpu().numpy())
