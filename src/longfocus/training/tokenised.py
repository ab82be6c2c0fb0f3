"""A corpus: the documents of all sources, tokenised once and kept in a cache folder.

    cache/text-3f0a.../tokens.arrow   the documents (token_file.py)
                       about.json     what they were made of: source, files or fingerprint, tokenizer, counts

The folder's name is a hash of everything that decides its tokens, so changed files, another tokenizer or another field
give another folder, and an unchanged source costs nothing. A folder is made under another name and renamed when it is
complete. `min_tokens`, weights and names are not part of it: changing them tokenises nothing.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.training.chat import Encoded
from longfocus.training.documents import Document
from longfocus.training.encode import Encoder
from longfocus.training.readers import open_reader
from longfocus.training.records import LeftOut, Reader, unread
from longfocus.training.sources import Source, check_mixture, kind_of
from longfocus.training.token_file import TokenFile, write_tokens

FORMAT = 1
TOKENS_FILE, ABOUT_FILE = "tokens.arrow", "about.json"

Report = Callable[[str, int, int], None]
"""Called with (what, done, total) in bytes or rows; total 0 where it is not known."""

logger = logging.getLogger(__name__)


class Part:
    """The documents of one source that are long enough, memory-mapped."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.source = folder, source
        self.about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_text())
        """What `about.json` says; `left_out` counts files and records that could not be used."""
        self._file = TokenFile(folder / TOKENS_FILE)
        self._kept = np.flatnonzero(self._file.lengths >= source.min_tokens)
        if not len(self._kept):
            raise LongFocusError(
                f"All {len(self._file.lengths)} documents of {source.path} are shorter than "
                f"min_tokens={source.min_tokens}; the longest has {self._file.lengths.max()} tokens. Lower "
                "it (--min-tokens, or min_tokens= of a Source), or leave the source out."
            )
        self.lengths = self._file.lengths[self._kept]
        """Tokens of every document."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return document_of(self._file[int(self._kept[index])], self.source)

    def __reduce__(self) -> tuple[type["Part"], tuple[Path, Source]]:
        # a process that gets a copy maps the file itself
        return Part, (self.folder, self.source)


class Corpus:
    """All documents of the mixture, source after source; `Order` says in which order training sees them."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        """Where each part begins, and how many documents there are."""

    @property
    def tokens(self) -> int:
        return sum(int(part.lengths.sum()) for part in self.parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Document:
        index = range(len(self))[index]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][index - int(self.starts[part])]


def document_of(encoded: Encoded, source: Source) -> Document:
    """The document with its loss mask written out and its source's name."""
    mask = encoded.loss_mask
    if mask is None:
        mask = np.ones(len(encoded.tokens), np.uint8)
        mask[0] = 0
    return Document(encoded.tokens, mask, source.label)


def prepare(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    vocab_size: int | None = None,
    *,
    append_eos: bool = True,
    prepend_bos: bool = False,
    report: Report = lambda what, done, total: None,
) -> Corpus:
    """The corpus of the sources; what `cache` does not have yet is tokenised into it.

    Each text ends with the tokenizer's end-of-text token if it has one (`append_eos`). `vocab_size` is the model's: a
    tokenizer with more entries is refused. Several processes may prepare the same: one works, the others wait.
    """
    check_mixture(sources)
    if streamed := [source.label for source in sources if source.stream]:
        raise LongFocusError(
            f"Streamed sources are not kept in a corpus. Got stream=True for {', '.join(streamed)}. Use Stream "
            "for them."
        )
    encoder = Encoder(
        tokenizer, vocab_size=vocab_size, append_eos=append_eos, prepend_bos=prepend_bos
    )
    return Corpus(
        [Part(_tokenised(source, encoder, Path(cache), report), source) for source in sources]
    )


def _tokenised(source: Source, encoder: Encoder, cache: Path, report: Report) -> Path:
    """The folder with the source's tokens, made if it is not there."""
    reader = open_reader(source)
    about = {
        "format": FORMAT,
        "kind": kind_of(source),
        "text_field": source.text_field,
        "content": _hash(reader.identity()),
        **encoder.identity(),
    }
    folder = cache / f"{about['kind']}-{_hash(about)[:24]}"
    if folder.exists():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # the lock of a process that died is free, and what it left behind is removed
        with FileLock(cache / f".{folder.name}.lock"):
            if not folder.exists():
                _make(folder, about | {"path": source.path}, _Work(source, reader, encoder, report))
    except OSError as error:
        raise LongFocusError(
            f"The tokens of {source.path} cannot be kept in {cache}: {error.strerror or error}. They need about as "
            "much room as the text. Make room, or choose another cache folder."
        ) from error
    return folder


def _hash(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _make(folder: Path, about: dict[str, Any], work: "_Work") -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        counts = work.write(part / TOKENS_FILE)
        (part / ABOUT_FILE).write_text(json.dumps(about | counts, indent=1) + "\n")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Work:
    """Tokenising one source."""

    def __init__(self, source: Source, reader: Reader, encoder: Encoder, report: Report) -> None:
        self._source, self._reader, self._encoder = source, reader, encoder
        self._report = report
        self._left_out = LeftOut()
        self._done = self._tokens = 0

    def write(self, path: Path) -> dict[str, Any]:
        """Writes all documents and says how many; refuses a source without any."""
        what, total = f"tokenising {self._source.label}", self._reader.total
        self._report(what, 0, total)
        documents = 0
        for written in write_tokens(path, self._encoded()):
            documents = written
            self._report(what, self._done, total)
        self._report(what, total or self._done, total)
        if self._left_out.count:
            logger.warning(
                "%s: %d left out: %s", self._source.path, self._left_out.count, self._left_out
            )
        if not documents:
            raise LongFocusError(no_documents(self._source, self._left_out))
        return {
            "documents": documents,
            "tokens": self._tokens,
            "left_out": self._left_out.count,
            "left_out_examples": self._left_out.examples,
        }

    def _encoded(self) -> Iterator[Encoded]:
        records = self._reader.records(self._left_out)
        for encoded, done in self._encoder.encode(records, self._left_out):
            self._done = done
            self._tokens += len(encoded.tokens)
            yield encoded


def no_documents(source: Source, left_out: LeftOut) -> str:
    """What is wrong with a source that gives nothing to train on."""
    return (
        f"There are no documents in {source.path}.{unread(source, left_out)} Training needs texts. Check the path, the "
        "kind (--kind) and the field (--text-field)."
    )
