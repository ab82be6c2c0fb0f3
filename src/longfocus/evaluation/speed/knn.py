"""lucidrains' KNNMemory against our growing store and dense search, over real keys.

Only where both do the same: pairs are added window by window, and a window of queries is answered from them. KNNMemory
answers with 32 pairs per query, found in a graph index (HNSW) and read from a file; ours attends to all.
"""

from collections.abc import Iterator

from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.evaluation.speed import kernels, searches
from longfocus.evaluation.speed.bench import Bench
from longfocus.evaluation.speed.pairs import absent, pair, short
from longfocus.evaluation.speed.peers import memorizing
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.timing import Clock, Contestant
from longfocus.memory import Part


def knn_memory(bench: Bench) -> None:
    """Adding keys window by window to lucidrains' KNNMemory, and finding 32 for a window of queries."""
    real, tokens = (
        kernels.real_keys(bench),
        min(bench.settings.knn_tokens, bench.settings.trained_tokens),
    )
    model = bench.settings.trained
    if not memorizing.is_there():
        bench.add(absent("kernel", model, tokens, f"not installed: {memorizing.HOW}"))
        return
    few = Part(real.part.key[:, :, :tokens], real.part.value[:, :, :tokens])
    peer = memorizing.Memorizing(few.key.shape[3], tokens, bench.settings.threads)
    query = real.window[0]
    try:
        filled = bench.race(
            {
                "dense": Contestant(lambda clock: _fill_ours(few)),
                "KNNMemory": bench.contestant(lambda clock: _fill(clock, peer, few)),
            }
        )
        row = Row(what="building", model=model, tokens=tokens, ours="dense", peer="KNNMemory")
        note = "adding pairs in windows of 256, one head"
        bench.add(pair(row.of(key=f"adding_{short(tokens)}_vs_knn_memory"), filled, note=note))
        if filled["KNNMemory"].median is None:
            return
        searched = bench.race(
            {
                "dense": Contestant(
                    kernels.our_search(searches.prepare("dense", few), query[None], real.scale)
                ),
                "KNNMemory": bench.contestant(
                    lambda clock: kernels.discard(peer.search(query[0, 0]))
                ),
            }
        )
        mass = _found_mass(peer.search(query[0, 0])[:, :, 0], few, query, real.scale)
    finally:
        peer.close()
    key = f"window_{short(tokens)}_vs_knn_memory"
    note = "KNNMemory: approximate top 32 (HNSW), with their pairs; search only"
    row = Row(what="window", model=model, tokens=tokens, ours="dense", peer="KNNMemory", key=key)
    bench.add(pair(row, searched, peer_mass=mass, note=note))


def _fill_ours(few: Part) -> None:
    from longfocus.memory import Store

    store = Store(few.key.dtype)
    for key, value in zip(
        few.key.split(task.WINDOW, 2), few.value.split(task.WINDOW, 2), strict=True
    ):
        store.append(key, value, None)


def _fill(clock: Clock, peer: memorizing.Memorizing, few: Part) -> None:
    peer.memory.clear()
    for key, value in _windows(few):
        peer.add(key, value)
        clock.check()


def _windows(few: Part) -> Iterator[tuple[Tensor, Tensor]]:
    keys, values = (pairs[0, 0].split(task.WINDOW) for pairs in (few.key, few.value))
    yield from zip(keys, values, strict=True)


def _found_mass(keys: Tensor, few: Part, query: Tensor, scale: float) -> searches.Mass:
    """What found keys `[queries, k, dim]` hold of the dense answer's attention."""
    dense = searches.prepare("dense", few).search(query, scale)
    scores = (query[0, 0].float()[:, None] * keys).sum(-1) * scale
    return searches.retained_by_keys(scores, dense)
