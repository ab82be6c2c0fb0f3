"""Labelled texts: from JSON lines, CSV or TSV, or a Hugging Face dataset. Imports no torch."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longfocus.errors import LongFocusError, extra

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Example:
    """A text, and what may be said of it."""

    text: str
    labels: tuple[str, ...]
    """All that are right; the first is the one that demonstrations show."""


def load(source: str, split: str, text_field: str, label_field: str) -> list[Example]:
    """All examples of a file, or of a dataset of the `datasets` library by its name."""
    path = Path(source)
    if path.suffix in (*SEPARATORS, ".jsonl"):
        rows = _file_rows(path)
    elif path.exists():
        raise LongFocusError(
            f"--data {source} is no kind of file that is known. Allowed: .jsonl, .csv and .tsv."
        )
    else:
        rows = _dataset_rows(source, split, label_field)
    examples = []
    for number, row in enumerate(rows, start=1):
        missing = [name for name in (text_field, label_field) if row.get(name) in (None, "", [])]
        if missing:
            raise LongFocusError(
                f"--data {source}, example {number}: nothing in {missing[0]!r}. It has: {', '.join(map(str, row))}. "
                "Name the fields with --text-field and --label-field."
            )
        labels = row[label_field]
        several = labels if isinstance(labels, list) else [labels]
        examples.append(Example(str(row[text_field]).strip(), tuple(map(_word, several))))
    return examples


def _word(label: Any) -> str:
    return str(label).strip()


def _file_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                for line in filter(str.strip, file):
                    row = json.loads(line)
                    yield row if isinstance(row, dict) else {}
            else:
                yield from csv.DictReader(file, delimiter=SEPARATORS[path.suffix])
    except (OSError, ValueError, csv.Error) as error:
        raise LongFocusError(
            f"--data {path} cannot be read ({error}). Give a file of labelled texts in UTF-8."
        ) from None


def _dataset_rows(name: str, split: str, label_field: str) -> Iterator[Mapping[str, Any]]:
    with extra("train", f"--data {name}, which is no file,"):
        import datasets
    try:
        # Any: one of several kinds; with a split they all give rows
        dataset: Any = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise LongFocusError(
            f"--data {name} is neither a file nor a dataset that can be loaded: {error}. Give a file .jsonl, .csv or "
            ".tsv, or the name of a dataset and its --split."
        ) from error
    # numbers stand for the names of classes; only their kind of column has names
    names = getattr(dataset.features.get(label_field), "names", None)
    for row in dataset:
        label = row.get(label_field)
        if names is not None and isinstance(label, int):
            yield {**row, label_field: names[label]}
        else:
            yield row
