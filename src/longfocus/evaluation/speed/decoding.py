"""What a decoded token costs with so much in memory: random models for latencies, a trained one for all the rest."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from longfocus.evaluation.speed import equality, kernels, machine, models, searches
from longfocus.evaluation.speed.bench import Bench, shapes
from longfocus.evaluation.speed.pairs import pair, short
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.peers.published import Published
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.settings import Shape
from longfocus.evaluation.speed.timing import Clock, Contestant, Timing

EMPTY = "empty memory"
LIMIT = "bandwidth limit"
_PROMPT = 4
# Of what is free; concatenating copies, and the rest of the system wants to live.
_SHARE_OF_MEMORY = 0.6


def decoding_random(tokens: int) -> Callable[[Bench], None]:
    """The random model with two memory layers and made-up pairs, against the peers."""

    def run(bench: Bench) -> None:
        name = "two layers"
        shape = shapes(bench.settings)[name]
        bench.once(("published", shape), lambda: equality.check_published(shape))
        bench.once(("full", shape), lambda: equality.check_full(shape))
        model = bench.random_model(shape)
        steps = bench.settings.decode_steps
        document = models.made_up_document(model, tokens)
        contestants = {
            "dense": Contestant(decode_ours(model, some_tokens(steps), document)),
            EMPTY: Contestant(decode_ours(model, some_tokens(steps))),
            "published_sdpa": bench.contestant(_published(model, steps, document)),
            "full_attention": _full(bench, model, shape, tokens),
        }
        timings = bench.race(contestants, least=bench.settings.least_repetitions)
        limit = machine.seconds_to_read(document.nbytes)
        timings[LIMIT] = Timing((limit,))
        for peer in ("published_sdpa", "full_attention", LIMIT):
            key = None if peer == LIMIT else f"decode_r8_{short(tokens)}_vs_{peer}"
            row = Row(what="decoding", model=name, tokens=tokens, ours="dense", peer=peer, key=key)
            bench.add(pair(row, timings))
        _add_vs_empty(bench, name, tokens, "dense", timings, f"decode_r8_{short(tokens)}_vs_empty")

    return run


def decoding_trained(bench: Bench) -> None:
    """The trained model with a text of the dictionary in memory, against itself with nothing in memory."""
    real = kernels.real_keys(bench)
    tokens, steps = bench.settings.trained_tokens, bench.settings.trained_decode_steps
    decoded = real.tokens[:, : _PROMPT + 1 + steps]
    few = decoded[:, : _PROMPT + 1 + bench.settings.decode_steps]
    contestants = {EMPTY: Contestant(decode_ours(real.model, decoded))}
    for name in searches.names():
        document = searches.document_for(name, real.document)
        # what it learned from other windows of questions
        learned = {
            layer: kernels.prepared(bench, name, real, "window").own for layer in document.layers
        }
        own = few if name == "dense" else decoded
        contestants[name] = Contestant(decode_ours(real.model, own, document, name, learned))
    timings = bench.race(contestants, least=bench.settings.least_repetitions)
    for name in searches.names():
        mass = None if name == "dense" else kernels.mass_of(bench, name, "window")
        is_best = name == searches.best()
        key = f"decode_{short(tokens)}_vs_empty" if is_best else None
        _add_vs_empty(bench, bench.settings.trained, tokens, name, timings, key, mass)


def _add_vs_empty(
    bench: Bench,
    model: str,
    tokens: int,
    ours: str,
    timings: dict[str, Timing],
    key: str | None,
    mass: searches.Mass | None = None,
) -> None:
    row = Row(what="decoding", model=model, tokens=tokens, ours=ours, peer=EMPTY, key=key)
    bench.add(pair(row, timings, mass=mass, is_inverse=True, note="ratio: ours / empty memory"))


def decode_ours(
    model: Any,
    decoded: Tensor,
    document: Any = None,
    search: str = "dense",
    learned: Mapping[int, Any] | None = None,
) -> Callable[[Clock], float]:
    """Seconds of a token, over the tokens `[1, tokens]` behind the first few."""
    import longfocus

    made: list[Any] = []
    options: dict[str, Any] = {**searches.OPTIONS[search], "searches": learned}

    def make() -> Any:
        documents = [] if document is None else [document]
        cache = longfocus.FocusCache(model, documents=documents, **options)
        model(decoded[:, :_PROMPT], past_key_values=cache)
        model(decoded[:, _PROMPT : _PROMPT + 1], past_key_values=cache)
        return cache

    def run(clock: Clock) -> float:
        with torch.inference_mode():
            if not made:
                made.append(make())
            cache = made[0].fork()
            rest = decoded[:, _PROMPT + 1 :]
            return _timed(clock, rest, lambda step: model(step, past_key_values=cache))

    return run


def some_tokens(steps: int) -> Tensor:
    """Tokens to decode by a model whose answers mean nothing."""
    return 1 + torch.arange(_PROMPT + 1 + steps)[None] % 7


def _published(model: Any, steps: int, document: Any) -> Callable[[Clock], float]:
    peer = Published(model)

    def run(clock: Clock) -> float:
        state = peer.filled(document)
        peer.logits(torch.ones(1, _PROMPT, dtype=torch.long), state)
        return _timed(
            clock, some_tokens(steps)[:, _PROMPT + 1 :], lambda step: peer.logits(step, state)
        )

    return run


def _full(bench: Bench, model: Any, shape: Shape, tokens: int) -> Contestant:
    peer = Full(models.stock_copy(model, shape))
    # its cache, and one layer of it copied at every token
    needed = tokens * peer.bytes_per_token() * (1 + 1 / shape.layers)
    if needed > _SHARE_OF_MEMORY * machine.free_bytes():
        return bench.contestant(lambda clock: None, f"it needs {needed / 2**30:.1f} GiB of memory")
    made: list[Any] = []

    def run(clock: Clock) -> float:
        if not made:
            made.append(
                peer.filled(
                    lambda seed: models.random_pairs(
                        shape.kv_heads, tokens, shape.head_dim, model.dtype, seed
                    )
                )
            )
            peer.logits(torch.ones(1, _PROMPT, dtype=torch.long), made[0])
        return _timed(
            clock, some_tokens(steps)[:, _PROMPT + 1 :], lambda step: peer.logits(step, made[0])
        )

    steps = bench.settings.decode_steps
    return bench.contestant(run)


def _timed(clock: Clock, tokens: Tensor, decode: Callable[[Tensor], Any]) -> float:
    """Seconds per token; what came before is not counted."""
    before = clock.seconds
    for token in tokens.split(1, 1):
        decode(token)
        clock.check()
    return (clock.seconds - before) / tokens.shape[1]
