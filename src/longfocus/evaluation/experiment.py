"""What an experiment is: settings, cells, and how a cell becomes records, and records a row.

    settings   a frozen dataclass; its fields are the options of `longfocus evaluate NAME`, their docstrings the help
    cells      what is measured one by one: {"tokens": 65536, "seed": 1}, and more where an experiment has more
    records    of a cell: one for each example (a question, a document), as they come
    row        of the records of a cell: accuracy or perplexity, with its confidence interval

The runner (runner.py) adds what every row has besides: retained mass, seconds, bytes. A new experiment is one file in
`experiments/` that exposes `EXPERIMENT`, and a line in the table there. Nothing here imports torch, and at its top such
a file must not either, so that `--help` answers at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject

Cell = Mapping[str, Any]
"""What is measured at once; has `tokens` and `seed`. Equal cells give equal records."""
Record = Mapping[str, Any]
Row = dict[str, Any]

_UNITS = {"K": 2**10, "M": 2**20}

PLAIN_WINDOW = 256
"""Tokens of an evaluated window of a model that has no windows, unless others are asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all experiments have in common."""

    tokens: tuple[str, ...] = ("64K",)
    """Lengths of memory, such as 16K 64K 1M; 1K is 1024 tokens."""
    seeds: tuple[int, ...] = (1,)
    """Each length is measured once with each of them."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """`tokens` as numbers, shortest first, each once."""
        return tuple(sorted(set(map(number_of_tokens, self.tokens))))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens": self.lengths}


def lengths_and_seeds(settings: Settings) -> Iterator[Cell]:
    """Every length with every seed, shortest first."""
    if not settings.tokens or not settings.seeds:
        raise LongFocusError(
            "There is nothing to measure. Give --tokens and --seeds a number each."
        )
    if min(settings.seeds) < 0:
        raise LongFocusError(
            f"--seeds {' '.join(map(str, settings.seeds))}: no random numbers come of a number below 0. Give 0 or more."
        )
    for tokens in settings.lengths:
        for seed in dict.fromkeys(settings.seeds):
            yield {"tokens": tokens, "seed": seed}


def refuse_unreadable(file: Path | None) -> None:
    """Raise LongFocusError for a --file that holds no text, as far as its beginning shows."""
    if file is None:
        return
    if not file.is_file():
        raise LongFocusError(f"--file {file} is not a file. Give a text in UTF-8.")
    try:
        with file.open("rb") as opened:
            is_binary = b"\0" in opened.read(4096)
    except OSError as error:
        raise LongFocusError(
            f"--file {file} cannot be read ({error.strerror}). Check its rights, or give another text in UTF-8."
        ) from None
    if is_binary:
        raise LongFocusError(
            f"--file {file} holds NUL bytes, as binary files and UTF-16 do. Give a text in UTF-8."
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, as functions."""

    settings: type[Settings]
    records: Callable[["Subject", Any, Cell], Iterable[Record]]
    row: Callable[[Sequence[Record]], Row]
    cells: Callable[[Any], Iterable[Cell]] = lengths_and_seeds
    has_texts: bool = True
    """Whether it needs a tokenizer."""
    model: str | None = None
    """The shipped model that knows it, measured where no other is named."""
    needs_memory: bool = True
    """Whether the model must have a memory."""
    attaches: bool = False
    """Whether it gives the model a memory of its own meanwhile: `window` and `positions` are settings of it."""


def number_of_tokens(text: str, option: str = "--tokens") -> int:
    """4K as 4096."""
    unit = _UNITS.get(text[-1:].upper())
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise LongFocusError(
            f"{option} {text!r} is not a number of tokens. Allowed: at least 1, such as 16K, 65536 or 1M."
        )
    return int(digits) * (unit or 1)
