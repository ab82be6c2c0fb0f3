"""What can be read: a text, a file, many texts, or token ids; tokenized piece by piece.

A text is cut at line ends into pieces of about `PIECE` characters, so that a book of any length is tokenized in bounded
space. Offsets count characters of the whole text.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError

Source = str | Path | Iterable[str] | Tensor | np.ndarray | Sequence[int]

PIECE = 2**18
logger = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """Some of a source, tokenized."""

    input_ids: Tensor
    """`[tokens]`"""
    offsets: Tensor | None
    """First and past-the-end character `[tokens, 2]` in the text so far; None without a fast tokenizer."""
    text: str


def identify(source: Source) -> object:
    """A key under which an interrupted reading of the same source is found again."""
    if isinstance(source, str):
        return sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(source, Path):
        state = _stat(source)
        return str(source.resolve()), state.st_size, state.st_mtime_ns
    if is_token_ids(source):
        return sha256(as_ids(source).numpy().tobytes()).hexdigest()
    # the object itself, not its id(), which another object may get later
    return _ByIdentity(source)


def name_of(source: Source) -> str:
    """A short name: that of the file, or the text's first words."""
    if isinstance(source, Path):
        return source.name
    if isinstance(source, str):
        return " ".join(source[:200].split())[:40] or "text"
    return "text"


def is_token_ids(source: Source) -> bool:
    if isinstance(source, list | tuple):
        return all(isinstance(token, int) for token in source[:1])
    return isinstance(source, Tensor | np.ndarray)


def as_ids(source: Source) -> Tensor:
    """Token ids `[tokens]` as int64 on the CPU."""
    ids = torch.as_tensor(source).detach().cpu()
    ids = ids[0] if ids.dim() == 2 and ids.shape[0] == 1 else ids
    if ids.dim() != 1 or (ids.is_floating_point() and len(ids)):
        raise LongFocusError(
            f"Token ids must be integers [tokens]. Got {ids.dtype} {tuple(ids.shape)}."
        )
    return ids.long()


def expected_tokens(source: Source) -> int | None:
    """About how many tokens a source has, for a progress bar; None if that is not known beforehand."""
    # about 4 characters a token: good enough for the time left
    if isinstance(source, str):
        return len(source) // 4
    if isinstance(source, Path):
        return _stat(source).st_size // 4
    return len(as_ids(source)) if is_token_ids(source) else None


def tokenize(source: Source, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Tokens]:
    """The source, piece by piece. Raises LongFocusError for an empty or unreadable one."""
    if is_token_ids(source):
        ids = as_ids(source)
        if not len(ids):
            raise LongFocusError("There is nothing to read: the token ids are empty.")
        yield Tokens(ids, None, "")
        return
    if tokenizer is None:
        raise LongFocusError(
            "A text can only be read with a tokenizer. Give Session one, or give token ids."
        )
    start, found = 0, False
    for piece in pieces(_texts(source)):
        _refuse_surrogates(piece)
        given = tokenizer(
            piece, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
        )
        ids = torch.tensor(given["input_ids"], dtype=torch.long)
        offsets = (
            torch.tensor(given["offset_mapping"]).view(-1, 2) + start if tokenizer.is_fast else None
        )
        start += len(piece)
        found = found or len(ids) > 0
        yield Tokens(ids, offsets, piece)
    if not found:
        raise LongFocusError(f"There is nothing to read: {_describe(source)} is empty.")


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LongFocusError(
            f"The text holds {error.object[error.start]!r} at character {error.start}, half of a surrogate pair, which "
            "is no character. Decode the file with its true encoding."
        ) from error


def _texts(source: Source) -> Iterator[str]:
    if isinstance(source, str):
        if len(source) < 4096 and "\n" not in source and source.strip() and _is_file(source):
            logger.warning(
                "Reading the text %r itself, although a file of that name exists. For the file: Path(...).",
                source,
            )
        yield source
    elif isinstance(source, Path):
        yield from _file(source)
    elif not isinstance(source, Iterable):
        raise LongFocusError(
            f"{type(source).__name__} cannot be read. Give a text, a Path, an iterable of texts, or token ids [tokens]."
        )
    else:
        for text in source:
            if not isinstance(text, str):
                raise LongFocusError(
                    f"An iterable source must give str. Got {type(text).__name__}."
                )
            yield text


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same characters in pieces of about `PIECE`, cut behind line ends where there are any."""
    waiting = ""
    for text in texts:
        waiting, start = waiting + text, 0
        while len(waiting) - start > PIECE:
            end = waiting.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            yield waiting[start:end]
            start = end
        waiting = waiting[start:]
    if waiting:
        yield waiting


def _file(path: Path) -> Iterator[str]:
    _stat(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while text := file.read(PIECE):
                yield text
    except UnicodeDecodeError as error:
        raise LongFocusError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it first."
        ) from error
    except OSError as error:
        raise LongFocusError(f"{path} cannot be read: {error.strerror}.") from error


def _stat(path: Path):  # noqa: ANN202  (os.stat_result)
    try:
        state = path.stat()
    except OSError as error:
        raise LongFocusError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if path.is_dir():
        raise LongFocusError(
            f"{path} is a folder. Give its files one by one, or an iterable of their texts."
        )
    return state


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _describe(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "the text"


class _ByIdentity:
    """Equal only for the same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
