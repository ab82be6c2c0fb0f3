"""Held-out documents: text files that a model did not learn from, chosen by rules that know nothing of any result.

Which documents are looked at is decided by their length alone, and by the order of a hash of seed and name. So is which
other documents lie beside one of them in memory.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import count
from os import fsencode
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.inference.source import tokenize
from longfocus.inference.texts.folder import files_under
from longfocus.inference.texts.text_file import looks_binary


class Document(NamedTuple):
    """A file, tokenised."""

    name: str
    ids: Int[Tensor, " tokens"]


class HeldOut:
    """Files, each of which is a document; tokenised when it is looked at, and then kept."""

    def __init__(self, paths: Sequence[Path], tokenizer: Any, option: str = "--data") -> None:
        self._files, self._option = _files(paths, option), option
        self._tokenizer = tokenizer
        self._ids: dict[str, Tensor] = {}

    def chosen(self, at_least: int, most: int, seed: int) -> list[Document]:
        """At most so many documents of so many tokens, in the order of their hashes. Raises LongFocusError for none."""
        found: list[Document] = []
        for name in self._hashed(seed):
            if len(found) < most and len(ids := self._long(name, at_least)) >= at_least:
                found.append(Document(name, ids))
        if not found:
            raise LongFocusError(
                f"None of the {len(self._files)} documents of {self._option} has {at_least:,} tokens, which the "
                "longest --tokens needs. Give shorter ones, or longer documents."
            )
        return found

    def others(self, own: str, tokens: int, seed: int) -> Iterator[Int[Tensor, " tokens"]]:
        """Pieces of so many tokens of documents other than `own`, another document each time as long as there is one.

        Which piece of a document comes is drawn; none comes twice.
        """
        names = [name for name in self._hashed(seed, own) if name != own]
        for turn in count():
            has_more = False
            for name in names:
                ids = self._long(name, tokens)
                pieces = len(ids) // tokens
                if turn < pieces:
                    has_more = True
                    drawn = np.random.default_rng(_hash(seed, own, name)).permutation(pieces)[turn]
                    yield ids[drawn * tokens : (drawn + 1) * tokens]
            if not has_more:
                return

    def _hashed(self, *salt: object) -> list[str]:
        return sorted(self._files, key=lambda name: _hash(*salt, name))

    def _long(self, name: str, at_least: int) -> Tensor:
        """The tokens of a document, or none of a file that has fewer bytes than the tokens that are asked for."""
        if name not in self._ids:
            if self._files[name].stat().st_size < at_least:
                return torch.empty(0, dtype=torch.long)
            pieces = tokenize(self._files[name], self._tokenizer)
            self._ids[name] = torch.cat([piece.input_ids for piece in pieces]).int()
        return self._ids[name].long()


@lru_cache(maxsize=1)
def held_out(paths: tuple[Path, ...], tokenizer: Any, option: str = "--data") -> HeldOut:
    """The same documents for every cell of a run: they are tokenised once. `option` is what named them."""
    return HeldOut(paths, tokenizer, option)


def evenly(tokens: int, before: int, size: int, most: int) -> list[int]:
    """Where windows of `size` tokens begin in a document, evenly apart, each with `before` tokens ahead of it.

    They do not overlap; of a document that is too short for that there are fewer than `most`.
    """
    number = min(most, (tokens - before) // size)
    room = (tokens - before) / max(number, 1)
    return [before + int(room * place + (room - size) / 2) for place in range(number)]


def _files(paths: Sequence[Path], option: str) -> dict[str, Path]:
    """Files by their names: in a folder the path there, else that of the file."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise LongFocusError(f"{option} {path} is not there. Give files and folders of text.")
        own = {path.name: path} if path.is_file() else _inside(path)
        if not own:
            raise LongFocusError(f"{option} {path} holds no text. Give files and folders of text.")
        if twice := sorted(own.keys() & found.keys()):
            raise LongFocusError(
                f"{option} has two documents called {twice[0]}. Give each once, or one folder that holds both."
            )
        found |= own
    return found


def _inside(folder: Path) -> dict[str, Path]:
    texts = (file for file in files_under(folder) if not looks_binary(file))
    return {file.relative_to(folder).as_posix(): file for file in texts}


def _hash(*what: object) -> int:
    return int.from_bytes(sha256(fsencode(" ".join(map(str, what)))).digest()[:8], "big")
