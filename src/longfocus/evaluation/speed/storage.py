"""Bytes per remembered token by number type, and peak resident memory of a reading, each in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import equality, models
from longfocus.evaluation.speed.bench import Bench, shapes
from longfocus.evaluation.speed.pairs import short
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.rows import Row

DTYPES = ("bfloat16", "int8", "float32")
_TOKENS = 1024


def bytes_per_token(bench: Bench) -> None:
    """Of keys and values, as they lie in memory and in a file."""
    for name, shape in shapes(bench.settings).items():
        model = bench.random_model(shape)
        document = models.made_up_document(model, _TOKENS)
        full = Full(models.stock_copy(model, shape)).bytes_per_token()
        for dtype in DTYPES:
            ours = document.to(dtype).nbytes // _TOKENS
            bench.add(
                Row(
                    what="bytes per token",
                    model=name,
                    tokens=_TOKENS,
                    ours=dtype,
                    ours_bytes=ours,
                    peer="full_attention",
                    peer_bytes=full,
                    ratio=full / ours,
                    repetitions=1,
                )
            )


def resident_memory(bench: Bench) -> None:
    """Peak resident memory while reading, with interpreter, libraries and model."""
    name, tokens = "two layers", bench.settings.side_length
    shape = shapes(bench.settings)[name]
    bench.once(("published", shape), lambda: equality.check_published(shape))
    bench.once(("full", shape), lambda: equality.check_full(shape))
    found = {}
    for who in ("dense", "published_sdpa", "full_attention"):
        bench.tell(f"{bench.name}: {who}")
        found[who] = _peak(bench, who, tokens)
    ours = found.pop("dense")
    for peer, theirs in found.items():
        start = max(ours["start"], theirs["start"]) / 2**20
        bench.add(
            Row(
                what="resident memory",
                model=name,
                tokens=tokens,
                ours="dense",
                ours_bytes=ours["peak"],
                peer=peer,
                peer_bytes=theirs["peak"],
                ratio=theirs["peak"] / ours["peak"],
                key=f"resident_{short(tokens)}_vs_{peer}",
                repetitions=1,
                note=f"at most {start:,.0f} MiB of it before reading",
            )
        )


def _peak(bench: Bench, who: str, tokens: int) -> dict[str, int]:
    task = {
        "who": who,
        "shape": asdict(bench.settings.shape),
        "tokens": tokens,
        "threads": bench.settings.threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", "longfocus.evaluation.speed.resident", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(bench.settings.threads)},
    )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LongFocusError(
            f"The process that measures the memory of {who} ended early: {told}. Measure with fewer tokens, or leave "
            "this measurement out with --only."
        )
    return json.loads(done.stdout.splitlines()[-1])
