"""The only place of the bench that knows which searches there are: dense always, clustered for what leaves keys out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core.attention import Partial
from longfocus.memory import SEARCHES, Part, Search
from longfocus.memory.dense import dense
from longfocus.memory.document import DocumentMemory

RETAIN = 0.999
"""Share of the attention that a search which leaves keys out is asked to keep; what it keeps is measured."""
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"search": "dense"},
    "clustered": {"search": "clustered", "retain": RETAIN},
}
"""Of FocusCache, by the name of a search."""


def names() -> tuple[str, ...]:
    """Searches to measure, those that leave nothing out first."""
    return tuple(name for name in OPTIONS if name in SEARCHES)


def best() -> str:
    """The fastest search for long memories."""
    return names()[-1]


class Prepared(NamedTuple):
    """Pairs made ready for a search, and the search."""

    part: Part
    search: Callable[[Tensor, float], Partial]
    """(query [1, heads, queries, dim], scale) -> Partial."""
    own: Search
    """The search itself, with what it has learned."""


def prepare(name: str, part: Part) -> Prepared:
    """Build what the search needs: nothing for dense, clusters for clustered, unless the part has them."""
    ready = _in_clusters(part) if name == "clustered" else part
    search = SEARCHES[name](FocusConfig(memory_layers=(0,), window=2, **OPTIONS[name]))
    return Prepared(ready, lambda query, scale: search(query, [ready], scale=scale), search)


def _in_clusters(part: Part) -> Part:
    from longfocus.memory.sorting import cluster

    return cluster(part) if part.clusters is None else part


def document_for(name: str, document: DocumentMemory) -> DocumentMemory:
    """The document with its pairs made ready for a search."""
    layers = {layer: prepare(name, part).part for layer, part in document.layers.items()}
    return replace(document, layers=layers)


class Mass(NamedTuple):
    """Shares of the attention that a search kept, over queries."""

    mean: float
    least: float


def retained(found: Partial, dense: Partial) -> Mass:
    """What `found` keeps of the attention of `dense`: both know the sum of what they looked at."""
    share = (found.lse.double() - dense.lse.double()).exp().clamp(max=1.0)
    return Mass(share.mean().item(), share.min().item())


def retained_by_keys(scores: Tensor, dense: Partial) -> Mass:
    """What the keys with these scores `[queries, k]` hold of the attention of `dense` `[1, 1, queries]`."""
    share = (scores.double().logsumexp(-1) - dense.lse[0, 0].double()).exp().clamp(max=1.0)
    return Mass(share.mean().item(), share.min().item())


def mean(masses: list[Mass]) -> Mass:
    """Over several calls with equally many queries."""
    return Mass(sum(mass.mean for mass in masses) / len(masses), min(mass.least for mass in masses))


def audited(reading: Any) -> Mass:
    """What the searches of a reading measured of themselves, against the dense answer for some queries on the way.

    A search that had nothing to measure has left nothing out.
    """
    found = []
    for search in reading._cache.searches.values():
        report = search.audit.report()
        if report is not None:
            found.append(Mass(report.mean, report.least))
    return mean(found) if found else Mass(1.0, 1.0)


class Seen(NamedTuple):
    """A search that a memory layer asked for."""

    query: Tensor
    scale: float


def queries_of(model: Any, ids: Tensor, document: DocumentMemory) -> list[Seen]:
    """What the memory layers ask of a document while the model reads a window `[1, tokens]`, lowest layer first."""
    import longfocus

    seen: list[Seen] = []

    def noting(query: Tensor, parts: Any, *, scale: float, softcap: float | None = None) -> Partial:
        seen.append(Seen(query.detach(), scale))
        return dense(query, parts, scale=scale, softcap=softcap)

    every = dict.fromkeys(document.layers, noting)
    cache = longfocus.FocusCache(model, documents=[document], searches=every)
    with torch.inference_mode():
        model(ids, past_key_values=cache, use_cache=True)
    assert len(seen) == len(document.layers), "every memory layer asks once"
    return seen
