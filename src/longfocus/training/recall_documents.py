"""Documents to learn recall from: source code in which a line states something, and a later line states it again.

    # The pass key of 'window_parser' is 48213.        stated
    ...                                                 code, or other such lines
    # The pass key of 'window_parser' is 48213.        again: the digits can only come from above
    ann_river.city = "oslo"    assert ann_river.city == "oslo"        the same of records (core/records_task.py)

Half of the documents are code with such lines between its lines, the others such lines alone. All names of a document
are pairs from a few words, and documents share these pools of words: names are told apart as a whole or not at all
(hard negatives, the paper's future work). A line comes again after 1 to `reach` others, near ones being as likely
as far ones on a logarithmic scale, so that windows, previous windows and far windows all matter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longfocus.core.records_task import BADGE, FIELDS, code_fact
from longfocus.training.passkey_task import DIGITS, LINE

_AGAIN_SHARE = 0.6
_RECORD_SHARE = 0.5


class Fact(NamedTuple):
    """What is stated, and the same as it comes again."""

    stated: str
    again: str


@dataclass(frozen=True, kw_only=True)
class RecallSettings:
    """How many documents, of which size."""

    documents: int = 400
    characters: int = 40_000
    """Of each at least, as far as its code reaches: several batches of windows."""
    pools: int = 40
    """Sets of words that names are made of."""
    reach: int = 150
    """Lines back from which one comes again at most."""
    between: tuple[int, int] = (2, 8)
    """Least and most lines of code between two of them, in documents with code."""
    seed: int = 0


def recall_documents(
    codes: Sequence[str],
    words: Sequence[str],
    settings: RecallSettings,
) -> Iterator[str]:
    """As many documents as asked for, made of pieces of `codes`; names are made of `words`."""
    rng = np.random.default_rng(settings.seed)
    pools = [_pool(words, rng) for _ in range(settings.pools)]
    for number in range(settings.documents):
        facts = _Facts(pools[int(rng.integers(len(pools)))], words, rng, settings.reach)
        if number % 2:
            yield _dense(facts, settings)
        else:
            yield _mixed(codes[int(rng.integers(len(codes)))], facts, rng, settings)


def write_recall_documents(
    folder: Path,
    codes: Sequence[str],
    words: Sequence[str],
    settings: RecallSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """One file each in `folder`, which must not be there yet; it appears when all are written."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(recall_documents(codes, words, settings)):
        (unfinished / f"recall_{number:04}.py").write_text(text, errors="replace")
        progress(number + 1, settings.documents)
    unfinished.rename(folder)


def _pool(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A few words; half of the pools are neighbours in the alphabet, which often share their first token."""
    size = min(int(rng.integers(6, 41)), len(words))
    ordered = sorted(words)
    if rng.random() < 0.5:
        start = int(rng.integers(len(ordered) - size + 1))
        return ordered[start : start + size]
    return [str(word) for word in rng.choice(ordered, size=size, replace=False)]


class _Facts:
    """Draws the lines of one document: new ones, and earlier ones again."""

    def __init__(
        self, pool: Sequence[str], values: Sequence[str], rng: np.random.Generator, reach: int
    ) -> None:
        self.pool, self.values, self.rng, self.reach = pool, values, rng, reach
        self.stated: list[Fact] = []
        self.about: set[str] = set()

    def line(self) -> str:
        """The next one. When the pool has no more names, all that comes has been stated before."""
        is_again = self.stated and self.rng.random() < _AGAIN_SHARE
        fact = None if is_again else self._new()
        if fact is None:
            return self._earlier().again
        self.stated.append(fact)
        return fact.stated

    def _earlier(self) -> Fact:
        reach = min(len(self.stated), self.reach)
        back = int(np.exp(self.rng.uniform(0, np.log(reach + 1))))
        return self.stated[-min(back, reach)]

    def _new(self) -> Fact | None:
        """None when everything drawn has been stated: that would be a contradiction."""
        for _ in range(20):
            name = "_".join(map(str, self.rng.choice(self.pool, size=2)))
            if self.rng.random() < _RECORD_SHARE:
                about, fact = self._record(name)
            else:
                line = LINE.format(name=name, digits=self._digits())
                about, fact = name, Fact(line, line)
            if about not in self.about:
                self.about.add(about)
                return fact
        return None

    def _record(self, name: str) -> tuple[str, Fact]:
        field = str(self.rng.choice(FIELDS))
        value = self._digits() if field == BADGE else str(self.rng.choice(self.values))
        said = code_fact(name, field, value)
        return f"{name}.{field}", Fact(said.line, f'{said.question}{said.answer}"')

    def _digits(self) -> str:
        return "".join(map(str, self.rng.integers(10, size=DIGITS)))


def _dense(facts: _Facts, settings: RecallSettings) -> str:
    lines, size = [], 0
    while size < settings.characters:
        lines.append(facts.line())
        size += len(lines[-1]) + 1
    return "\n".join(lines) + "\n"


def _mixed(code: str, facts: _Facts, rng: np.random.Generator, settings: RecallSettings) -> str:
    """A piece of the code, lines between its lines."""
    start = int(rng.integers(max(len(code) - settings.characters, 0) + 1))
    given = code[start : start + settings.characters].splitlines()
    lines, least, most = [], *settings.between
    while given:
        taken = int(rng.integers(least, most + 1))
        lines += [*given[:taken], facts.line()]
        given = given[taken:]
    return "\n".join(lines) + "\n"
