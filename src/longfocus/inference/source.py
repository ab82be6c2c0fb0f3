"""What can be read: a text, a file, a folder, many texts, or token ids; tokenized piece by piece.

A text is cut at line ends into pieces of about `PIECE` characters, so that a book of any length is tokenized in bounded
space. Offsets count characters of the whole text.
"""

import logging
import os.path
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder_text import FolderText, TogetherText
from longfocus.inference.texts.source_text import FileText, ManyTexts, OneText, SourceText

Text = str | Path | Iterable[str]
Source = Text | SourceText | Tensor | np.ndarray | Sequence[int]

PIECE = 2**18
logger = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """Some of a source, tokenized."""

    input_ids: Tensor
    """`[tokens]`"""
    offsets: Tensor | None
    """First and past-the-end character `[tokens, 2]` in the text so far; None without a fast tokenizer."""
    text: str


def open_source(source: Source, name: str | None = None) -> SourceText:
    """The source as text, which after reading knows its parts. Nothing is read yet."""
    if isinstance(source, SourceText):
        return source
    if isinstance(source, str):
        return OneText(source, name)
    if isinstance(source, Path):
        return FolderText(source, name) if os.path.isdir(source) else FileText(source, name)
    # the keys of a table, or the numbers of bytes, are no texts
    if isinstance(source, Iterable) and not (
        is_token_ids(source) or isinstance(source, Mapping | bytes | bytearray)
    ):
        return ManyTexts(cast(Iterable[str], source), name)
    raise LongFocusError(
        f"{type(source).__name__} cannot be read as text. Give a text, a Path, an iterable of texts, or token ids "
        "[tokens] where they are taken."
    )


def together(sources: Iterable[Text]) -> SourceText:
    """One source of several: a header line before each, and a part for each text and each file of a folder."""
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise LongFocusError("There is nothing to read together. Give at least one source.")
    names = _names(given)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise LongFocusError(
            f"What is read together must be different. Got {', '.join(twice)} more than once. Give each once."
        )
    return TogetherText(
        [open_source(source, name) for source, name in zip(given, names, strict=True)]
    )


def _names(given: Sequence[Text]) -> list[str]:
    """A file or folder is called by its name, or by its path where several have that name; a text by its place."""
    names = [
        open_source(source).name if isinstance(source, Path) else f"text {place}"
        for place, source in enumerate(given, start=1)
    ]
    counts = Counter(names)
    return [
        source.as_posix() if isinstance(source, Path) and counts[name] > 1 else name
        for source, name in zip(given, names, strict=True)
    ]


def content_hash(source: Source) -> str:
    """SHA-256 of what would be read, of a text as UTF-8: equal as long as the content is.

    Reads all of it, in bounded memory. Raises LongFocusError for what cannot be read, or only once.
    """
    if is_token_ids(source):
        return sha256(as_ids(source).numpy().tobytes()).hexdigest()
    if isinstance(source, Iterator):
        raise LongFocusError(
            "An iterator can be read only once, so that its hash would leave nothing to read. Give a list of texts, or "
            "a Path."
        )
    digest = sha256()
    for text in open_source(source).texts():
        _refuse_surrogates(text)
        digest.update(text.encode())
    return digest.hexdigest()


def identify(source: Source) -> object:
    """A key under which an interrupted reading of the same source is found again."""
    return content_hash(source) if is_token_ids(source) else open_source(source).identity()


def name_of(source: Source) -> str:
    """A short name: that of the file or folder, or the text's first words."""
    return "text" if is_token_ids(source) else open_source(source).name


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
    if is_token_ids(source):
        return len(as_ids(source))
    characters = open_source(source).expected_characters()
    # about 4 characters a token: good enough for the time left
    return None if characters is None else characters // 4


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
    opened, start, found = open_source(source), 0, False
    for piece in pieces(opened.texts()):
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
        raise LongFocusError(
            f"There is nothing to read: the tokenizer makes no token of {opened}. Give another."
        )
    if (notice := opened.notice()) is not None:
        logger.warning("%s", notice)


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LongFocusError(
            f"The text holds {error.object[error.start]!r} at character {error.start}, half of a surrogate pair, which "
            "is no character. Decode the file with its true encoding."
        ) from error


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
