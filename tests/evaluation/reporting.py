"""Folders of runs that nobody ran, for the tests of `longfocus report`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SHARE = [0.1, 0.9]


def made(
    folder: Path,
    experiment: str,
    rows: Sequence[Row],
    *,
    model: str = "small",
    records: Sequence[Row] = (),
    memory: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder as `longfocus evaluate --output` leaves it; without settings, a run that is finished."""
    folder.mkdir(parents=True)
    measured = {key: sorted({row[key] for row in rows}) for key in ("tokens", "seed")}
    of_cells = {"tokens": measured["tokens"], "seeds": measured["seed"]}
    config = {
        "experiment": experiment,
        "command": f"longfocus evaluate {experiment} --model {model} --output {folder.name}",
        "model": model,
        "settings": {**of_cells, **settings},
        "memory": memory or {},
        "window_prefix": [],
        "focus": {"search": "dense"},
        "hardware": {"processor": "a processor", "device": "cpu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"experiment": experiment, "rows": rows}))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines)
    return folder


def every_kind(folder: Path) -> Path:
    """A finished run, or several, of everything that a report plots."""
    cells = [(2**power, seed) for power in (12, 14, 16) for seed in (1, 2)]
    for name, loss in (("crossbatch", 0.01), ("d1", 0.08)):
        rows = [
            {
                "tokens": tokens,
                "seed": seed,
                "accuracy": 1 - loss * (tokens / 2**14) - seed / 100,
                "accuracy_interval": [0.9 - loss * (tokens / 2**14), 1.0],
                "accuracy_without_memory": 0.02,
                "questions": 40,
            }
            for tokens, seed in cells
        ]
        made(folder / f"passkey_{name}", "passkey", rows, model=f"models/{name}", text="landmark")
    for place, model in enumerate(("base", "xl", "memorizing", "fot")):
        rows = [
            {
                "tokens": tokens,
                "seed": seed,
                "perplexity": 8 + place - tokens**0.1 * place / 3 + seed / 20,
                "perplexity_interval": [7.6 + place - tokens**0.1 * place / 3, 9.0 + place],
                "loss": 2.0,
                "documents": 12,
            }
            for tokens, seed in [(0, 1), (0, 2), *cells]
        ]
        made(folder / f"perplexity_{model}", "perplexity", rows, model=model, data=["x"])
    for model, power in (("standard", 1.0), ("fot", 0.3)):
        rows = [
            {
                "tokens": 2048,
                "seed": 1,
                "others": others,
                "positive_mass": (1 + others) ** -power,
                "positive_mass_interval": [
                    0.8 * (1 + others) ** -power,
                    min(1.2 * (1 + others) ** -power, 1),
                ],
                "layers": [{"layer": 1, "positive_mass": 0.5}],
            }
            for others in (1, 3, 7, 15, 63)
        ]
        others = [1, 3, 7, 15, 63]
        made(folder / f"distraction_{model}", "distraction", rows, model=model, others=others)
    rows = [
        {
            "tokens": tokens,
            "seed": seed,
            "depth": depth,
            "accuracy": 1 - depth * (tokens > 2**14) - 0.1 * (seed - 1),
            "accuracy_without_memory": 0.0,
            "questions": 4,
        }
        for tokens, seed in cells
        for depth in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    made(folder / "needle", "needle", rows, depths=5)
    rows = [
        {
            "tokens": tokens,
            "seed": 1,
            "accuracy": 0.5 + tokens / 2**15,
            "accuracy_interval": [0.4 + tokens / 2**15, 0.6 + tokens / 2**15],
            "accuracy_without_memory": 0.3,
        }
        for tokens in (2048, 4096, 6144, 8192)
    ]
    made(folder / "fewshot", "fewshot", rows)
    row = {"tokens": 16384, "seed": 1, "knn_score": 0.3, "focus_score": 0.6, "same_token": 0.5}
    more = {"same_token_interval": [0.4, 0.6], "same_token_by_chance": 0.01, "queries": 3}
    looks = [
        {
            "tokens": 16384,
            "seed": 1,
            "layer": 2,
            "token": f" name{number}",
            "context": ["def ", "(self):"],
            "retrieved": f" name{number}",
            "retrieved_context": ["    return self.", "()\n"],
            "knn_score": number / 10,
            "focus_score": 0.5,
        }
        for number in range(3)
    ]
    made(folder / "retrieval", "retrieval", [{**row, **more}], records=looks)
    return folder
