"""Reading into a library: what is there unchanged is skipped, and what was interrupted goes on.

for each source     hash of its text = that in the library, same model and settings?   -> unchanged
                    else read it; every finished step is kept in a journal (.NAME.reading) in the library's folder
                    then one new file, and the journal goes
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from longfocus.config import Search
from longfocus.errors import LongFocusError, NewerFormat
from longfocus.hf.model import FocusMixin
from longfocus.inference.journal import SUFFIX, Journal
from longfocus.inference.reader import Progress, Reading
from longfocus.inference.source import Source, content_hash, name_of
from longfocus.memory.document import DocumentMemory
from longfocus.memory.header import canonical
from longfocus.memory.library import Library


class Collected(NamedTuple):
    """What became of a source."""

    document: DocumentMemory
    outcome: Literal["read", "read again", "replaced", "unchanged"]
    """`read again`: the same text, with another model or other settings; `replaced`: the name held another text."""
    tokens_before: int = 0
    """Of the other text that was replaced."""


def read_into(
    library: Library,
    model: FocusMixin,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Source,
    name: str | None = None,
    *,
    window_prefix: tuple[int, ...] = (),
    memory_dtype: str | None = None,
    search: Search | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Read one source into the library, under its own name or the given one.

    A document of that name that was read from another text, or with another model, is replaced when the new one is
    complete; one that cannot be opened, too. Killed at any moment, the same call goes on behind the last finished step.
    `memory_dtype` is that of the file, None the model's; `search` is how windows look into earlier ones, and
    "clustered" sorts the file for it. Raises LongFocusError for an unreadable source, for a name
    that no file can have, or a file that cannot be written.
    """
    known = _known(library, name or name_of(source))
    if metadata is None and known is not None:
        metadata = known.metadata
    searches = {} if search is None else {"search": search}
    reading = Reading(model, tokenizer, source, name, window_prefix, searches, metadata)
    # a name that cannot be written is refused now, not behind hours of reading
    library.path_of(reading.name)
    is_there = reading.name in library
    checksum = content_hash(source)
    path = _journal_path(library.folder, reading.name)
    known_checksum = None if known is None else _text_hash(known)
    if known is not None and known_checksum == checksum and _is_alike(known, reading, memory_dtype):
        _remove(path)
        return Collected(known, "unchanged")
    settings = [reading.layers, reading.dtype, asdict(reading.read_with)]
    journal = Journal(path, _hash(canonical([checksum, reading.name, *settings])), reading.name)
    try:
        document = reading.run(progress, journal)
        document = document if memory_dtype is None else document.to(memory_dtype)
        kept = library.add(document, replaces=True)
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    if known is not None and known_checksum not in (None, checksum):
        return Collected(kept, "replaced", known.tokens)
    return Collected(kept, "read again" if is_there else "read")


def _known(library: Library, name: str) -> DocumentMemory | None:
    """The document of that name, if there is one that can be opened; one that is damaged is read again."""
    if name not in library:
        return None
    try:
        return library.open(name)
    except NewerFormat:
        raise
    except LongFocusError:
        return None


def _text_hash(known: DocumentMemory) -> str | None:
    """None if it cannot be known: token ids that are damaged are read again."""
    with suppress(LongFocusError):
        return known.description.source_sha256 or content_hash(known.token_ids)
    return None


def _is_alike(known: DocumentMemory, reading: Reading, memory_dtype: str | None) -> bool:
    """Whether the same text would be read with the same model and settings."""
    described = known.description
    return (
        described.read_with == reading.read_with
        and list(described.memory_layers) == reading.layers
        and described.metadata == reading.metadata
        and described.dtype == (memory_dtype or reading.dtype)
        and bool(described.clusters) == reading.will_be_sorted(described.tokens)
    )


def _journal_path(folder: Path, name: str) -> Path:
    return folder / f".{_hash(name)[:16]}{SUFFIX}"


def _remove(path: Path) -> None:
    """Remove a journal that nobody needs: whoever wrote it was killed behind the last step."""
    # unless another process is reading another source of that name
    with suppress(LongFocusError):
        if path.exists():
            Journal(path, "").close(remove=True)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
