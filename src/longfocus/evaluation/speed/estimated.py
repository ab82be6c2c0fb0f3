"""How good the estimates of `longfocus estimate` are: estimate / measured, in the same run."""

from typing import Any

from longfocus.evaluation.speed import models
from longfocus.evaluation.speed.bench import Bench, shapes
from longfocus.evaluation.speed.decoding import decode_ours, some_tokens
from longfocus.evaluation.speed.estimate import estimate
from longfocus.evaluation.speed.pairs import short
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.timing import Contestant
from longfocus.inference.reader import Reading


def estimates(bench: Bench) -> None:
    """The random models with two memory layers and with one, reading and decoding."""
    settings = bench.settings
    for name in ("two layers", "one layer"):
        shape = shapes(settings)[name]
        model = bench.random_model(shape)
        _compare(bench, name, model, settings.side_length, shape.vocabulary)


def _compare(bench: Bench, name: str, model: Any, tokens: int, vocabulary: int) -> None:
    bench.tell(f"{bench.name}: calibrating with {name}")
    told = estimate(model, tokens)
    ids = models.random_ids(tokens, vocabulary)
    kept: list[Any] = []
    reading = bench.race(
        {"reading": Contestant(lambda clock: kept.append(Reading(model, None, ids).run()))}
    )
    decoding = bench.race(
        {
            "decoding": Contestant(
                decode_ours(model, some_tokens(bench.settings.decode_steps), kept[-1])
            )
        }
    )
    seconds = {
        "reading": (told.reading_seconds, reading["reading"].median),
        "decoding": (told.decode_seconds, decoding["decoding"].median),
    }
    for what, (expected, found) in seconds.items():
        bench.add(
            Row(
                what=f"estimate of {what}",
                model=name,
                tokens=tokens,
                ours="measured",
                ours_seconds=found,
                peer="estimate",
                peer_seconds=expected,
                ratio=expected / found if found else None,
                key=f"estimate_{what}_{short(tokens)}_{name.replace(' ', '_')}",
                repetitions=bench.settings.repetitions,
                note="ratio: estimate / measured",
            )
        )
    bench.add(
        Row(
            what="estimate of bytes",
            model=name,
            tokens=tokens,
            ours="measured",
            ours_bytes=kept[-1].nbytes,
            peer="estimate",
            peer_bytes=told.memory_bytes,
            ratio=told.memory_bytes / kept[-1].nbytes,
            repetitions=1,
            note="ratio: estimate / measured",
        )
    )
