"""All measurements of the bench, by name, in their order: the short ones first, so that an interrupted run has most."""

from longfocus.evaluation.speed.bench import Bench, Measurement
from longfocus.evaluation.speed.decoding import decoding_random, decoding_trained
from longfocus.evaluation.speed.estimated import estimates
from longfocus.evaluation.speed.kernels import build, kernel
from longfocus.evaluation.speed.knn import knn_memory
from longfocus.evaluation.speed.pairs import short
from longfocus.evaluation.speed.reading import (
    reading,
    reading_grouped,
    reading_one_layer,
    reading_trained,
)
from longfocus.evaluation.speed.settings import QUICK, M, Settings
from longfocus.evaluation.speed.storage import bytes_per_token, resident_memory
from longfocus.evaluation.speed.timing import ENOUGH_SECONDS

READING_SECONDS = {
    "dense": {4: 0.6, 16: 3.2, 64: 27},
    "published_sdpa": {4: 0.8, 16: 6.5, 64: 78},
    "published_eager": {4: 2.9, 16: 32},
    "full_attention": {4: 1.0, 16: 12.6, 64: 131},
}
"""Of one repetition, by thousands of tokens. What is missing takes more than the limit."""
DECODING_MINUTES = {4: 0.1, 16: 0.1, 64: 0.3, 256: 1.0, 1024: 1.5}


def measurements(settings: Settings) -> dict[str, Measurement]:
    """Every measurement of a run with these settings. Minutes are of one repetition in quick runs, else of three."""
    real = short(settings.trained_tokens)
    share = settings.repetitions / 3
    long = settings.trained_tokens / M
    found: dict[str, Measurement] = {
        f"kernel_{real}": Measurement(kernel("one"), 1.0 * long),
        f"window_{real}": Measurement(kernel("window"), 0.4 + 0.6 * share * long),
        f"decode_{real}": Measurement(decoding_trained, 0.2 * long),
        "reading_one_layer": Measurement(
            reading_one_layer, sum(settings.lengths) / M * 3.2 * share + 0.4
        ),
        "bytes": Measurement(bytes_per_token, 0.1),
        "estimate": Measurement(estimates, 0.3 + 0.4 * share),
        "knn_memory": Measurement(knn_memory, 0.7 * settings.knn_tokens / 65536 * share),
        "build": Measurement(build, 0.5 * share * long),
        "resident": Measurement(resident_memory, 1.0 * settings.side_length / 16384),
        "reading_gqa": Measurement(reading_grouped, 0.4 + 1.2 * share),
    }
    found |= {
        f"decode_r8_{short(n)}": Measurement(decoding_random(n), DECODING_MINUTES.get(n // 1024, 1))
        for n in settings.lengths
    }
    found |= {
        f"reading_{short(n)}": Measurement(reading(n), _minutes(settings, n))
        for n in settings.lengths
    }
    found["reading_trained"] = Measurement(reading_trained, 10 * sum(settings.trained_lengths) / M)
    if settings.budget_seconds is None:
        return found
    no_more = ("decode_r8", "reading_gqa", "reading_trained")
    return {
        name: found[name]
        for begin in QUICK
        for name in found
        if name.startswith(begin) and not name.startswith(no_more)
    }


def _minutes(settings: Settings, tokens: int) -> float:
    """Of a reading with two memory layers."""
    few = settings.most_peers_tokens is not None and tokens > settings.most_peers_tokens
    who = ("dense", *settings.peers[: 1 if few else None])
    seconds = 0.0
    for name in who:
        one = READING_SECONDS[name].get(tokens // 1024, 0.0)
        # what has run for long is not repeated
        seconds += one * min(settings.repetitions, 1 + ENOUGH_SECONDS // max(one, 1.0))
    return 0.2 + seconds / 60 / settings.threads


def minutes(bench: Bench, names: list[str]) -> float:
    """About how long the measurements take that are left to make."""
    every = measurements(bench.settings)
    return sum(every[name].minutes for name in names if name not in bench.report.finished)
