"""What the YAML tasks of this folder ask. Nothing is downloaded: texts lie beside this file, pass keys are made here.

The harness hands every data set what `--model_args` and `--metadata` say.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

import longfocus
from longfocus.evaluation.haystack import QUESTION, Haystack
from longfocus.evaluation.source_lines import standard_library_lines, words_of_names
from longfocus.hf.pretrained import resolve

FOLDER = Path(__file__).parent


def python_lines(**given: Any) -> dict[str, datasets.Dataset]:
    return _test(_lines("python_lines.jsonl"))


def python_texts(**given: Any) -> dict[str, datasets.Dataset]:
    return _test({"text": line["text"]} for line in _lines("python_texts.jsonl"))


def passkey(
    *,
    pretrained: str = "code",
    tokenizer: str | None = None,
    max_seq_lengths: Sequence[int] = (512, 4096),
    samples: int = 20,
    window: int = 256,
    seed: int = 1,
    **given: Any,
) -> dict[str, datasets.Dataset]:
    """Texts of at least so many tokens, each with one key at a random place, and the beginning of its line again.

    `window`: a key stands whole inside one window.
    """
    own = longfocus.tokenizer(tokenizer or pretrained)
    words = words_of_names(Path(resolve(tokenizer or pretrained)))
    lines = standard_library_lines(own, seed)
    haystack = Haystack(lines, own, words, window=window, seed=seed)
    depths = np.random.default_rng(seed)
    asked = []
    for length in max_seq_lengths:
        for _ in range(samples):
            piece = haystack.piece_with(length, [depths.random()])
            (key,) = piece.keys
            question = QUESTION.format(name=key.name).rstrip()
            asked.append({"text": piece.text + question, "digits": key.digits, "length": length})
    return _test(asked)


def found(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the digits are in the answer, counted for each length."""
    return {f"found at {doc['length']}": float(doc["digits"] in results[0])}


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _test(documents: Any) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(list(documents))}
