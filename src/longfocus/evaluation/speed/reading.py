"""How fast a text enters the memory, by its length and against the peers; and how that grows."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from longfocus.evaluation.speed import equality, models, searches
from longfocus.evaluation.speed.bench import Bench, shapes
from longfocus.evaluation.speed.pairs import absent, pair, short
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.peers.published import Published
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.settings import Shape
from longfocus.evaluation.speed.timing import (
    Clock,
    Contestant,
    Timing,
    exponent,
    least_seconds,
    too_long,
)
from longfocus.inference.reader import Reading

OURS = "dense"


def reading(tokens: int) -> Callable[[Bench], None]:
    """Two memory layers, against every peer."""

    def run(bench: Bench) -> None:
        most = bench.settings.most_peers_tokens
        peers = bench.settings.peers
        if most is not None and tokens > most:
            peers = peers[:1]
        _pairs(bench, "two layers", tokens, peers, "reading")

    return run


def reading_grouped(bench: Bench) -> None:
    """The same with groups of query heads."""
    peers = ("published_sdpa", "full_attention")
    _pairs(bench, "two layers, GQA", bench.settings.side_length, peers, "reading_gqa")


def _pairs(bench: Bench, model_name: str, tokens: int, peers: tuple[str, ...], prefix: str) -> None:
    shape = shapes(bench.settings)[model_name]
    bench.tell(f"{bench.name}: checking that all compute the same")
    bench.once(("published", shape), lambda: equality.check_published(shape))
    bench.once(("full", shape), lambda: equality.check_full(shape))
    model = bench.random_model(shape)
    ids = models.random_ids(tokens, shape.vocabulary)
    runs = {OURS: _ours(model, ids), **{peer: _peer(peer, model, shape, ids) for peer in peers}}
    contestants = {}
    for name, run in runs.items():
        why_not = _why_not(bench, (model_name, name), tokens)
        contestants[name] = bench.contestant(run, why_not)
    timings = bench.race(contestants)
    for name, timing in timings.items():
        _remember(bench, (model_name, name), tokens, timing)
    for peer in peers:
        key = f"{prefix}_{short(tokens)}_vs_{peer}"
        row = Row(what="reading", model=model_name, tokens=tokens, ours=OURS, peer=peer, key=key)
        bench.add(pair(row, timings))


def reading_one_layer(bench: Bench) -> None:
    """One memory layer: reading never searches, so it is linear."""
    name = "one layer"
    shape = shapes(bench.settings)[name]
    bench.once(("published", shape), lambda: equality.check_published(shape))
    model = bench.random_model(shape)
    found: dict[int, float] = {}
    for tokens in bench.settings.lengths:
        ids = models.random_ids(tokens, shape.vocabulary)
        contestants = {OURS: Contestant(_ours(model, ids))}
        peers = ["published_sdpa"] if tokens <= bench.settings.side_length else []
        for peer in peers:
            contestants[peer] = bench.contestant(_peer(peer, model, shape, ids))
        timings = bench.race(contestants)
        found[tokens] = timings[OURS].median or 0.0
        for peer in peers or [None]:
            key = f"reading_one_layer_{short(tokens)}_vs_{peer}" if peer else None
            row = Row(what="reading", model=name, tokens=tokens, ours=OURS, peer=peer, key=key)
            bench.add(pair(row, timings))
    add_exponent(bench, name, OURS, found, "reading_exponent_one_layer")


def reading_trained(bench: Bench) -> None:
    """Two memory layers and trained keys: the search that leaves keys out, against dense."""
    settings = bench.settings
    name = settings.trained_two
    if not models.is_there(name):
        why = (
            f"there is no model {name}; `longfocus train dictionary --memory-layers 2 3 --output {name}` makes it, or "
            "name another with --model"
        )
        bench.add(absent("reading", name, settings.trained_lengths[-1], why))
        return
    import longfocus

    model = bench.once(("trained", name), lambda: longfocus.from_pretrained(name))
    found: dict[int, float] = {}
    for tokens in settings.trained_lengths:
        _, ids = models.dictionary_ids(tokens)
        why_not = _why_not(bench, (name, "dense"), tokens)
        made: list[Reading] = []
        # as `search="clustered"` reads by default
        ours = _ours(model, ids, made, search="clustered")
        timings = bench.race(
            {
                "clustered": Contestant(ours),
                "dense": bench.contestant(_ours(model, ids), why_not),
            }
        )
        _remember(bench, (name, "dense"), tokens, timings["dense"])
        found[tokens] = timings["clustered"].median or 0.0
        mass = searches.audited(made[-1])
        key = f"reading_trained_{short(tokens)}_vs_dense"
        both = {"ours": "clustered", "peer": "dense"}
        row = Row(what="reading", model=name, tokens=tokens, key=key, **both)
        bench.add(pair(row, timings, mass=mass))
    add_exponent(bench, name, "clustered", found, "reading_exponent_trained")


def add_exponent(bench: Bench, model: str, ours: str, seconds: dict[int, float], key: str) -> None:
    """The growth from `exponent_from`, or the first length behind it, to the last."""
    first = [tokens for tokens in seconds if tokens >= bench.settings.exponent_from]
    if len(first) < 2:
        return
    short_one, long_one = min(first), max(first)
    slope = exponent((short_one, seconds[short_one]), (long_one, seconds[long_one]))
    bench.add(
        Row(
            what="growth",
            model=model,
            tokens=long_one,
            ours=ours,
            ratio=slope,
            key=key,
            repetitions=bench.settings.repetitions,
            note=f"slope of log seconds by log tokens, {short(short_one)} to {short(long_one)}",
        )
    )


def _ours(
    model: Any, ids: Tensor, made: list[Reading] | None = None, **search: Any
) -> Callable[[Clock], None]:
    """Reads; the last reading is in `made` afterwards."""

    def run(clock: Clock) -> None:
        reading = Reading(model, None, ids, search=search)
        reading.run(lambda done, is_all: clock.check())
        if made is not None:
            made[:] = [reading]

    return run


def _peer(name: str, model: Any, shape: Shape, ids: Tensor) -> Callable[[Clock], None]:
    peer = _make_peer(name, model, shape)
    return lambda clock: _discard(peer.read(ids, clock.check))


def _discard(made: Any) -> None:
    del made


def _make_peer(name: str, model: Any, shape: Shape) -> Any:
    if name == "full_attention":
        return Full(models.stock_copy(model, shape))
    return Published(model, is_eager=name == "published_eager")


def _why_not(bench: Bench, who: tuple[str, str], tokens: int) -> str:
    """Whether shorter readings show that this one takes too long."""
    before: list[tuple[int, float]] = bench.once(("history", who), list)
    limit = bench.settings.limit_seconds
    return too_long(limit) if least_seconds(before, tokens) > limit else ""


def _remember(bench: Bench, who: tuple[str, str], tokens: int, timing: Timing) -> None:
    before: list[tuple[int, float]] = bench.once(("history", who), list)
    if timing.median is not None:
        before.append((tokens, timing.median))
    elif not before or before[-1][1] < math.inf:
        before.append((tokens, math.inf))
