"""Peak resident memory of one reading, in this process alone.

    python -m longfocus.evaluation.speed.resident '{"who": "dense", "shape": {...}, "tokens": 16384, "threads": 1}'

Prints {"start": bytes before reading, "peak": most bytes while reading}.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from longfocus.evaluation.speed import models
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.peers.published import Published
from longfocus.evaluation.speed.settings import Shape


def main(task: dict[str, Any]) -> dict[str, int]:
    torch.set_num_threads(task["threads"])
    fields: dict[str, Any] = {
        **task["shape"],
        "memory_layers": tuple(task["shape"]["memory_layers"]),
    }
    shape = Shape(**fields)
    model = models.random_model(shape)
    ids = models.random_ids(task["tokens"], shape.vocabulary)
    peer = None
    if task["who"] == "published_sdpa":
        peer = Published(model)
    elif task["who"] == "full_attention":
        peer = Full(models.stock_copy(model, shape))
        del model
    _forget_peak()
    start = _status("VmRSS") or _peak()
    if peer is None:
        from longfocus.inference.reader import read_document

        kept: Any = read_document(model, None, ids)
    else:
        kept = peer.read(ids)
    peak = _status("VmHWM") or _peak()
    del kept
    return {"start": start, "peak": peak}


def _forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
