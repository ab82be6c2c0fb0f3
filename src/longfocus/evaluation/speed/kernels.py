"""One search of a memory layer at a time, over real keys and for real queries: those of a trained model.

    keys      the memory layer's, of a text of the dictionary task
    queries   of a window of questions about it: `one` at a time where an answer is predicted, and the whole `window`

FAISS flat finds the best 32 keys and is timed for that alone; ours also weighs and adds the values.
"""

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.core import reference
from longfocus.core.attention import Partial
from longfocus.core.labels import NO_LOSS
from longfocus.evaluation.speed import equality, machine, models, searches
from longfocus.evaluation.speed.bench import Bench
from longfocus.evaluation.speed.pairs import absent, pair, short
from longfocus.evaluation.speed.peers import faiss_flat
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.timing import Clock, Contestant, Timing
from longfocus.memory import Part
from longfocus.memory.audit import SELDOM

FAISS = "faiss_flat"
LIMIT = "bandwidth limit"
QUERIES = 16
"""Single queries in a repetition; their mean counts."""
LEARNED_FROM = 3
"""Windows with whose queries a search learns its width before it is timed."""
LEARNED = 1024
"""Queries that it learns from: by then it seldom measures itself."""
SETTLED = SELDOM
"""Queries in a repetition of such a search, so that what it measures of itself counts as in use."""
_CHECKED = 4096
"""Keys that everything is checked on before it is timed."""


class RealKeys(NamedTuple):
    """A text in the memory of a trained model, and what is asked of it."""

    model: Any
    document: Any
    part: Part
    """The pairs of the memory layer; one KV head."""
    one: Tensor
    """`[queries, 1, 1, 1, dim]`: one at a time, of one head."""
    window: Tensor
    """`[1, 1, 1, window, dim]`: all at once."""
    scale: float
    tokens: Tensor
    """The window of questions, `[1, 256]`."""
    others: dict[str, Tensor]
    """Queries of other windows, as `one` and as `window`: what a search learns its width from before it is timed."""


def real_keys(bench: Bench) -> RealKeys:
    """Read once in a run."""
    tokens = bench.settings.trained_tokens
    name = bench.settings.trained
    return bench.once(("real keys", name, tokens), lambda: _read(bench, name, tokens))


def _read(bench: Bench, name: str, tokens: int) -> RealKeys:
    import longfocus

    bench.tell(f"{bench.name}: reading {tokens:,} tokens of the dictionary task")
    model = longfocus.from_pretrained(name)
    records, ids = models.dictionary_ids(tokens)
    document = longfocus.read_document(model, None, ids)
    first, *others = (_asked(model, document, records, seed) for seed in range(1 + LEARNED_FROM))
    part = document.layers[model.focus.config.memory_layers[-1]]
    head = Part(part.key[:, :1], part.value[:, :1])
    learned = {
        "one": torch.cat([other.one for other in others]),
        "window": torch.cat([other.window for other in others]),
    }
    asked = models.question_window(records, 0)
    return RealKeys(model, document, head, first.one, first.window, first.scale, asked, learned)


class _Asked(NamedTuple):
    one: Tensor
    window: Tensor
    scale: float


def _asked(model: Any, document: Any, records: task.Records, seed: int) -> _Asked:
    """The queries of one head for a window of questions, whose memory layer is the last that asks."""
    window = models.question_window(records, seed)
    seen = searches.queries_of(model, window, document)[-1]
    query = seen.query[:, :1]
    # the token before an answer token predicts it
    predicts = (task.answer_labels(window, task.RECORDS_PER_WINDOW)[0, 1:] != NO_LOSS).nonzero()
    places = predicts[:: max(1, len(predicts) // QUERIES), 0][:QUERIES]
    one = query[:, :, places].permute(2, 0, 1, 3)[:, :, :, None]
    return _Asked(one, query[None], seen.scale)


def kernel(which: str) -> Callable[[Bench], None]:
    """`one` query at a time, or a `window` of them."""

    def run(bench: Bench) -> None:
        real = real_keys(bench)
        queries = getattr(real, which)
        bench.once("kernels", lambda: check(real))
        contestants = {}
        for name in searches.names():
            ready = prepared(bench, name, real, which)
            least = 1 if name == "dense" else SETTLED
            contestants[name] = Contestant(our_search(ready, queries, real.scale, least))
        has_faiss = faiss_flat.is_there()
        if has_faiss:
            found = bench.once(("found", which), list)
            contestants[FAISS] = bench.contestant(_faiss(_index(bench, real), queries, found))
        timings = bench.race(contestants, least=bench.settings.least_repetitions)
        _add_rows(bench, which, real, timings)

    return run


def _add_rows(bench: Bench, which: str, real: RealKeys, timings: dict[str, Timing]) -> None:
    what = {"one": "kernel", "window": "window"}[which]
    tokens, model = len(real.part), bench.settings.trained
    prefix = f"{what}_{short(tokens)}"
    timings[LIMIT] = Timing((machine.seconds_to_read(real.part.key.nbytes * 2),))
    for name in searches.names():
        mass = None if name == "dense" else mass_of(bench, name, which)
        row = Row(what=what, model=model, tokens=tokens, ours=name)
        is_best = name == searches.best()
        if FAISS in timings:
            key = f"{prefix}_vs_faiss_flat" if is_best else f"{prefix}_{name}_vs_faiss_flat"
            peer_mass = _faiss_mass(bench, real, which)
            note = "FAISS: top 32, search only"
            own = row.of(peer=FAISS, key=key)
            bench.add(pair(own, timings, mass=mass, peer_mass=peer_mass, note=note))
        else:
            bench.add(absent(what, model, tokens, "FAISS is not installed: pip install faiss-cpu"))
        if name == "dense" and which == "one":
            key = f"{prefix}_dense_of_bandwidth"
            bench.add(pair(row.of(peer=LIMIT, key=key), timings))
        if is_best:
            key = f"{prefix}_retained_mass"
            note = "share of the dense answer's attention that ours keeps"
            kept = 1.0 if mass is None else mass.mean
            bench.add(row.of(key=key, ratio=kept, retained_mass=kept, note=note))


def check(real: RealKeys) -> None:
    """On the first keys: dense is the plain formula, clustered keeps what it should, FAISS finds the best."""
    few = Part(real.part.key[:, :, :_CHECKED], real.part.value[:, :, :_CHECKED])
    query = real.window[0]
    wide = (tensor.float() for tensor in (query, few.key, few.value))
    plain, lse = reference.attention(*wide, scale=real.scale)
    for name in searches.names():
        ready = searches.prepare(name, few)
        found = ready.search(query, real.scale)
        kept = searches.retained(found, Partial(plain, lse)).mean
        if name == "dense":
            equality.check_same(found.output, plain, 0.05, "Dense search and the plain formula")
        elif kept < searches.RETAIN - 0.01:
            raise equality.Unequal(
                f"{name} search keeps {kept:.4f} of the attention on {len(few)} keys, where {searches.RETAIN} is "
                "asked for. No ratio is printed. Repair the search before timing it."
            )
    if faiss_flat.is_there():
        _, places = faiss_flat.FaissFlat(few.key[0, 0]).search(query[0, 0])
        scores = query[0, 0].float() @ few.key[0, 0].float().T
        best = scores.topk(places.shape[1]).values
        equality.check_same(scores.gather(1, places), best, 1e-3, "FAISS flat and topk")


def mass_of(bench: Bench, name: str, which: str) -> searches.Mass:
    """What a search keeps of the dense answer's attention, over all queries."""
    real = real_keys(bench)
    ready = prepared(bench, name, real, which)
    found = [
        searches.retained(ready.search(query, real.scale), dense)
        for query, dense in zip(
            getattr(real, which), _dense_answers(bench, real, which), strict=True
        )
    ]
    return searches.mean(found)


def build(bench: Bench) -> None:
    """How long it takes until the same keys can be searched."""
    real, model = real_keys(bench), bench.settings.trained
    tokens = len(real.part)
    runs: dict[str, Contestant] = {}
    for name in searches.names():
        runs[name] = Contestant(lambda clock, name=name: discard(searches.prepare(name, real.part)))
    if faiss_flat.is_there():
        threads, keys = bench.settings.threads, real.part.key[0, 0]
        runs[FAISS] = bench.contestant(lambda clock: discard(faiss_flat.FaissFlat(keys, threads)))
    del runs["dense"]
    timings = bench.race(runs)
    for name in searches.names()[1:]:
        row = Row(what="building", model=model, tokens=tokens, ours=name)
        note = "FAISS flat only copies the keys" if FAISS in timings else ""
        bench.add(pair(row.of(peer=FAISS if FAISS in timings else None), timings, note=note))


def our_search(
    ready: searches.Prepared, queries: Tensor, scale: float, least: int = 1
) -> Callable[[Clock], float]:
    """Seconds of a search, over all queries, again and again until there were `least`."""

    def run(clock: Clock) -> float:
        rounds = max(1, least // (len(queries) * queries.shape[3]))
        with torch.inference_mode():
            for query in chain.from_iterable(repeat(queries, rounds)):
                ready.search(query, scale)
        return clock.seconds / (rounds * len(queries))

    return run


def _faiss(
    index: faiss_flat.FaissFlat, queries: Tensor, found: list[Tensor]
) -> Callable[[Clock], float]:
    """The scores of the last repetition are in `found` afterwards."""

    def run(clock: Clock) -> float:
        found.clear()
        for query in queries:
            found.append(index.search(query[0, 0])[0])
            clock.check()
        return clock.seconds / len(queries)

    return run


def prepared(bench: Bench, name: str, real: RealKeys, which: str) -> searches.Prepared:
    """A search of its own for `which` queries, over pairs that are made ready once."""
    part = bench.once(("part", name), lambda: searches.prepare(name, real.part).part)

    def make() -> searches.Prepared:
        ready = searches.prepare(name, part)
        if name != "dense":
            our_search(ready, real.others[which], real.scale, LEARNED)(Clock(None))
        return ready

    return bench.once(("search", name, which), make)


def _index(bench: Bench, real: RealKeys) -> faiss_flat.FaissFlat:
    keys, threads = real.part.key[0, 0], bench.settings.threads
    return bench.once("faiss index", lambda: faiss_flat.FaissFlat(keys, threads))


def _dense_answers(bench: Bench, real: RealKeys, which: str) -> list[Partial]:
    ready = prepared(bench, "dense", real, which)
    return bench.once(
        ("answers", which),
        lambda: [ready.search(query, real.scale) for query in getattr(real, which)],
    )


def _faiss_mass(bench: Bench, real: RealKeys, which: str) -> searches.Mass | None:
    found: list[Tensor] = bench.once(("found", which), list)
    dense = _dense_answers(bench, real, which)
    if len(found) < len(dense):
        return None
    pairs = zip(found, dense, strict=True)
    return searches.mean(
        [searches.retained_by_keys(scores * real.scale, all_of_it) for scores, all_of_it in pairs]
    )


def discard(made: Any) -> None:
    del made
