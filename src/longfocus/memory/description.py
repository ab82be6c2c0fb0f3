"""What a document memory says of itself: what it was read from, and with what. It is the metadata of its file.

`Description.from_dict` believes nothing: a file may come from anywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from longfocus.config import MEMORY_DTYPES, FocusConfig, Positions
from longfocus.errors import LongFocusError, NewerFormat
from longfocus.memory.header import canonical
from longfocus.memory.parts import SourcePart

FORMAT = "longfocus document memory"
VERSION = 1
DTYPES = MEMORY_DTYPES


@dataclass(frozen=True)
class ReadWith:
    """The model and the settings that a text was read with; another model could not use its keys."""

    positions: str
    """The `positions` setting."""
    window: int
    """Tokens of a window, `window_prefix` included."""
    window_prefix: tuple[int, ...] = ()
    """Token ids that began every window."""
    model: Mapping[str, str] = field(default_factory=dict)
    """The model's fingerprint (hf/fingerprint.py): equal entries for equal models."""
    tokenizer: str | None = None
    """The tokenizer's fingerprint; None if it was read from token ids."""
    top_k: int | None = None
    """Memory keys per query and head that a window saw of earlier ones; None: all, or one memory layer, where none
    are looked into while reading."""
    retain: float | None = None
    """Share of the attention on earlier windows that an approximate search was to keep; None: nothing was left out."""


@dataclass(frozen=True)
class Description:
    """All that is known of a document besides its tensors."""

    name: str
    tokens: int
    dtype: str
    """Of keys and values: one of `DTYPES`."""
    memory_layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    read_with: ReadWith
    source_sha256: str | None = None
    """Of the text in UTF-8; None if it was read from token ids."""
    source_characters: int = 0
    parts: tuple[SourcePart, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The user's own entries, to select documents by."""
    is_together: bool = False
    """Whether its parts were documents of their own, read as one stream on purpose."""
    clusters: int = 0
    """Clusters of every KV head that its pairs lie sorted by; 0: they lie in the order of the text."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it. Raises LongFocusError for what `from_dict` would not take back."""
        try:
            made = json.loads(canonical({"format": FORMAT, "version": VERSION, **asdict(self)}))
            self.from_dict(made)
        except (ValueError, TypeError) as error:
            raise LongFocusError(
                f"Document {self.name!r} cannot be written: {error}. Its name and its metadata must be text."
            ) from error
        return made

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Description":
        """Raises LongFocusError for another format or a newer version, another ValueError for what makes no sense."""
        if given.get("format") != FORMAT:
            raise LongFocusError(
                f"it is a {given.get('format')!r}, and not a {FORMAT}. Give a file that DocumentMemory.save wrote"
            )
        version = _whole(given["version"], least=1)
        if version > VERSION:
            raise NewerFormat(
                f"it was written in version {version} of the format, and this LongFocus knows {VERSION}. Install a "
                "newer LongFocus, or read the text again"
            )
        values = {entry.name: given[entry.name] for entry in fields(cls)}
        if set(given) != {*values, "format", "version"}:
            raise ValueError("unknown entries")
        made = cls(
            name=_text(values["name"]),
            tokens=_whole(values["tokens"], least=1),
            dtype=_one_of(values["dtype"], DTYPES),
            memory_layers=tuple(_whole(layer) for layer in _sequence(values["memory_layers"])),
            kv_heads=_whole(values["kv_heads"], least=1),
            head_dim=_whole(values["head_dim"], least=1),
            read_with=_read_with(values["read_with"]),
            source_sha256=None
            if values["source_sha256"] is None
            else _text(values["source_sha256"]),
            source_characters=_whole(values["source_characters"]),
            parts=tuple(_part(part) for part in _sequence(values["parts"])),
            metadata=_texts(values["metadata"]),
            is_together=_one_of(values["is_together"], (True, False)),
            clusters=_whole(values["clusters"]),
        )
        if list(made.memory_layers) != sorted(set(made.memory_layers)) or not made.memory_layers:
            raise ValueError(f"memory layers {made.memory_layers}")
        borders = [border for part in made.parts for border in (part.start, part.end)]
        if borders != sorted(borders) or borders[-1:] > [made.source_characters]:
            raise ValueError("parts that overlap, or lie beyond the end of the text")
        return made


def check_words(name: Any, metadata: Any) -> None:
    """Raise LongFocusError for a name or entries that a file could not hold."""
    try:
        _text(name)
    except ValueError as error:
        raise LongFocusError(
            f"The name of a document must be text. Got {name!r} ({error}). Choose another, or none for its source's."
        ) from error
    try:
        _texts(dict(metadata) if isinstance(metadata, Mapping) else metadata)
    except ValueError as error:
        raise LongFocusError(
            f'The metadata of a document must be text: text, such as {{"language": "en"}}. Got {metadata!r} ({error}).'
        ) from error


def seen_of_earlier_windows(config: FocusConfig) -> dict[str, Any]:
    """What a search lets a window see of earlier ones, if not all: entries of `ReadWith`."""
    entries: dict[str, dict[str, Any]] = {
        "dense": {},
        "exact": {"top_k": config.top_k},
        "clustered": {"retain": config.retain},
        "faiss": {"top_k": config.top_k, "retain": config.retain},
    }
    return entries[config.search]


def _read_with(given: Any) -> ReadWith:
    if set(given) != {entry.name for entry in fields(ReadWith)}:
        raise ValueError("unknown entries")
    return ReadWith(
        positions=_one_of(given["positions"], get_args(Positions)),
        window=_whole(given["window"], least=1),
        window_prefix=tuple(_whole(token) for token in _sequence(given["window_prefix"])),
        model=_texts(given["model"]),
        tokenizer=None if given["tokenizer"] is None else _text(given["tokenizer"]),
        top_k=None if given["top_k"] is None else _whole(given["top_k"], least=1),
        retain=None if given["retain"] is None else _share(given["retain"]),
    )


def _part(given: Any) -> SourcePart:
    part = SourcePart(_text(given["name"]), _whole(given["start"]), _whole(given["end"]))
    if set(given) != {"name", "start", "end"}:
        raise ValueError("unknown entries")
    return part


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is no text")
    # half of a surrogate pair could be neither printed nor written
    given.encode()
    return given


def _texts(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise ValueError(f"{given!r} is no table")
    return {_text(name): _text(value) for name, value in given.items()}


def _share(given: Any) -> float:
    if type(given) is not float or not 0 < given < 1:
        raise ValueError(f"{given!r} is no share")
    return given


def _whole(given: Any, least: int = 0) -> int:
    if type(given) is not int or not least <= given < 2**63:
        raise ValueError(f"{given!r} is no number of at least {least}")
    return given


def _one_of(given: Any, allowed: tuple[Any, ...]) -> Any:
    # 1 == True
    if type(given) is not type(allowed[0]) or given not in allowed:
        raise ValueError(f"{given!r} is none of {allowed}")
    return given


def _sequence(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"{given!r} is no list")
    return given
