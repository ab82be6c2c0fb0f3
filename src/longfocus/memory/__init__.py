"""What a memory layer looks into: pairs in parts, how they grow, and how they are searched."""

from collections.abc import Callable
from functools import partial

from longfocus.config import FocusConfig
from longfocus.memory.base import Hits, Part, Search
from longfocus.memory.clustered import Clustered
from longfocus.memory.dense import dense
from longfocus.memory.exact import exact
from longfocus.memory.faiss_search import FLAT, Faiss
from longfocus.memory.store import Store

SEARCHES: dict[str, Callable[[FocusConfig], Search]] = {
    "dense": lambda config: dense,
    "exact": lambda config: partial(exact, top_k=config.top_k),
    "clustered": lambda config: Clustered(config.retain, certify=config.certify),
    "faiss": lambda config: Faiss(
        config.top_k, config.index, None if config.index == FLAT else config.retain
    ),
}
"""What makes every search, by its name in `FocusConfig.search`."""


def make_search(config: FocusConfig) -> Search:
    """A search for one memory layer."""
    return SEARCHES[config.search](config)


__all__ = ["SEARCHES", "Hits", "Part", "Search", "Store", "dense", "exact", "make_search"]
