"""Reading into a library, step by step: what was read, how often the model was run, and how it is interrupted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from longfocus import Library
from longfocus.inference import reader, source
from longfocus.inference.collect import Collected, read_into
from small import TEXT, byte_tokenizer, small_model

SHORT = TEXT[:75]
STEPS = {(1,): 4, (0, 1): 4}
"""Calls of the model for SHORT: five windows of 16 bytes and a rest, two at a time."""
every_memory = pytest.mark.parametrize("layers", list(STEPS), ids=str)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows at a time where they are independent, and several pieces of text."""
    monkeypatch.setattr(reader, "BATCH_TOKENS", 32)
    monkeypatch.setattr(source, "PIECE", 40)


def read(
    folder: Path, given: Any = SHORT, layers: tuple[int, ...] = (1,), **named: Any
) -> Collected:
    """Read into the library in a folder, as a new process would."""
    options = {"model": small_model(layers), "tokenizer": byte_tokenizer(), "name": "owl"}
    return read_into(Library(folder), source=given, **{**options, "metadata": {}, **named})


def files(folder: Path) -> dict[str, bytes]:
    """All that is in the folder, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def visible(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if not name.startswith(".")}


@contextmanager
def steps(layers: tuple[int, ...] = (1,), counted: Path | None = None) -> Iterator[list[int]]:
    """The windows of every call of the model; a file that is given grows by a byte for each."""
    rows: list[int] = []
    kind = type(small_model(layers))
    read_window = kind.read_window

    def counting(self: Any, memory: Any, input_ids: torch.Tensor) -> None:
        rows.append(len(input_ids))
        if counted is not None:
            with counted.open("ab") as file:
                file.write(b".")
        read_window(self, memory, input_ids)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, "read_window", counting)
        yield rows


def interrupting(step: int) -> Callable[[int, bool], None]:
    """A progress report that is interrupted at a step, counted from 1."""
    reports = iter(range(1, step + 1))

    def report(done: int, is_all: bool) -> None:
        if next(reports) == step:
            raise KeyboardInterrupt

    return report


def other_weights() -> dict[str, Any]:
    model = small_model.__wrapped__()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    return {"model": model}


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: {"given": SHORT[:-1]},
    "weights": other_weights,
    "tokenizer": lambda: {"tokenizer": byte_tokenizer(bos=True)},
    "memory layers": lambda: {"layers": (0, 1)},
    "window": lambda: {"model": small_model(window=17)},
    "positions": lambda: {"model": small_model(positions="none")},
    "type of the memory": lambda: {"model": small_model(memory_dtype="bfloat16")},
    "window_prefix": lambda: {"window_prefix": (1,)},
    "memory_dtype": lambda: {"memory_dtype": "int8"},
    "metadata": lambda: {"metadata": {"language": "en"}},
}
