"""What a memory layer looks into: pairs in parts, how they grow, and how they are searched."""

from longfocus.memory.base import Hits, Part, Search
from longfocus.memory.dense import dense
from longfocus.memory.exact import exact
from longfocus.memory.store import Store

SEARCHES: dict[str, Search] = {"dense": dense, "exact": exact}
"""Every search by its name in `FocusConfig.search`."""

__all__ = ["SEARCHES", "Hits", "Part", "Search", "Store", "dense", "exact"]
