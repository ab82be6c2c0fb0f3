"""The files of a source as records: one text or one chat each, with its place for messages.

A reader knows the identity of what it reads (so that a cache can tell whether it is the same), how much there is, and
gives the records in order. Texts are whole files; in code, the files of a folder under one another, a header line with
the path before each. `tables.py` has the readers of parquet files and Hugging Face datasets.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import files_under
from longfocus.training.sources import LINES, Source, local_path

Messages = list[dict[str, Any]]

EXAMPLES = 5
NAME_THE_FIELD = (
    "Name the field with the text or the chat messages (--text-field, or text_field= of a Source)."
)


class Record(NamedTuple):
    """One document before it is tokenised."""

    content: str | Messages
    where: str
    """File, or file and line: where the reader of a message should look."""
    done: int
    """How much of the reader's `total` has been read with it."""


@dataclass
class LeftOut:
    """What was not used, and why: a count, and the first few by name."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, why: str) -> None:
        self.count += 1
        self.reasons[why] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where} ({why})")

    def __str__(self) -> str:
        if self.count == len(self.examples):
            return ", ".join(self.examples)
        most = ", ".join(f"{count} {why}" for why, count in self.reasons.most_common(EXAMPLES))
        return ", ".join(self.examples) + f", ... (in all {most})"


class Reader(Protocol):
    """One kind of source."""

    total: int
    """Bytes or rows; 0 where it is not known."""

    def identity(self) -> object:
        """JSON that changes when the records do."""
        ...

    def records(self, left_out: LeftOut) -> Iterator[Record]: ...


class Files:
    """The files of a source, in the order of their relative paths."""

    def __init__(self, source: Source, suffixes: frozenset[str] = frozenset()) -> None:
        self.root = local_path(source)
        found = files_under(self.root, source.pattern)
        if self.root.is_dir() and suffixes:
            found = [path for path in found if path.suffix.lower() in suffixes]
        if not found:
            fitting = "" if source.pattern == "*" else f" that fits pattern={source.pattern!r}"
            ending = f" that ends in {' or '.join(sorted(suffixes))}" if suffixes else ""
            raise LongFocusError(
                f"There are no documents in {source.path}: no file{fitting}{ending} is there.{unread(source)} Check "
                "the path and the kind (--kind)."
            )
        self.paths = found
        self.states = [path.stat() for path in found]
        self.total = sum(state.st_size for state in self.states)

    def name(self, path: Path) -> str:
        """The path inside the source, with the source's own last part in front."""
        return path.relative_to(self.root.parent).as_posix()

    def identity(self) -> object:
        """Names, sizes and times of change; the place of the folder may change."""
        return [
            [self.name(path), state.st_size, state.st_mtime_ns]
            for path, state in zip(self.paths, self.states, strict=True)
        ]

    def sized(self) -> Iterator[tuple[Path, int]]:
        """Each file with the bytes of all files up to its end."""
        done = 0
        for path, state in zip(self.paths, self.states, strict=True):
            done += state.st_size
            yield path, done


def unread(source: Source, left_out: LeftOut | None = None) -> str:
    """What of a source gives no document, and why: sentences to go on with, or nothing."""
    said = f" {left_out.count} left out: {left_out}." if left_out and left_out.count else ""
    path = local_path(source)
    if source.kind == "dataset" or not path.is_dir():
        return said
    everything = [Path(here, name) for here, _, names in os.walk(path) for name in names]
    visible = len(files_under(path))
    counts = {
        "hidden": sum(map(os.path.isfile, everything)) - visible,
        "of other names": visible - len(files_under(path, source.pattern)),
    }
    found = [f"{count} {why}" for why, count in counts.items() if count]
    return said + (f" Files that are not read: {', '.join(found)}." if found else "")


class TextReader(Files):
    """Every file is a document."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)

    def records(self, left_out: LeftOut) -> Iterator[Record]:
        for path, done in self.sized():
            if (text := read_text(path, left_out)) is not None:
                yield Record(text, str(path), done)


class CodeReader(Files):
    """A folder is a document; a folder that holds nothing but folders has one for each of them."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._is_shelf = all(len(path.relative_to(self.root).parts) > 1 for path in self.paths)

    def records(self, left_out: LeftOut) -> Iterator[Record]:
        waiting: list[str] = []
        folder, done = self._folder(self.paths[0]), 0
        for path, after in self.sized():
            if self._folder(path) != folder:
                yield Record("".join(waiting), str(folder), done)
                waiting, folder = [], self._folder(path)
            if (text := read_text(path, left_out)) is not None:
                line_end = "" if text.endswith("\n") or not text else "\n"
                waiting.append(f"# {self.name(path)}\n{text}{line_end}")
            done = after
        yield Record("".join(waiting), str(folder), done)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root if self._is_shelf else self.root.parent).as_posix()

    def _folder(self, path: Path) -> Path:
        return self.root / path.relative_to(self.root).parts[0] if self._is_shelf else self.root


class LinesReader(Files):
    """Every line is a JSON object with a text or a chat."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, LINES)
        self._field = source.text_field

    def records(self, left_out: LeftOut) -> Iterator[Record]:
        before = 0
        for path, after in self.sized():
            with open_bytes(path) as file:
                read = 0
                for number, line in enumerate(file, start=1):
                    read += len(line)
                    if line.strip():
                        where = f"{path}, line {number}"
                        yield Record(
                            content_of(_entry(line, where), self._field, where),
                            where,
                            before + read,
                        )
            before = after


def _entry(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones
        raise LongFocusError(
            f'{where} is not JSON: {error}. Every line must be one object, such as {{"text": "..."}}. Repair or '
            "remove it."
        ) from error
    if not isinstance(entry, dict):
        raise LongFocusError(
            f"{where} must be an object. Got {type(entry).__name__}. Write one object per line, such as "
            f'{{"text": "..."}}.'
        )
    return entry


def content_of(entry: Mapping[str, Any], name: str | None, where: str) -> str | Messages:
    """The text or the messages of one entry; an absent value is an empty text."""
    found = name or next((usual for usual in ("text", "messages") if usual in entry), "text")
    if found not in entry:
        raise missing_field(where, found, list(entry))
    content = entry[found]
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(message, dict) for message in content):
        return content
    raise LongFocusError(
        f"{where}: the field {found!r} must hold a text or a list of chat messages. Got {type(content).__name__}. "
        f"{NAME_THE_FIELD}"
    )


def missing_field(where: str, name: str, there: list[str]) -> LongFocusError:
    return LongFocusError(
        f"{where} has no field {name!r}. It has {', '.join(map(repr, there)) or 'none'}. {NAME_THE_FIELD}"
    )


def read_text(path: Path, left_out: LeftOut) -> str | None:
    """A file's text; None, and counted, for what is no UTF-8 text."""
    with open_bytes(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        left_out.add(str(path), "not UTF-8 text")
        return None
    return text


def open_bytes(path: Path):  # noqa: ANN201  (BufferedReader)
    try:
        return path.open("rb")
    except OSError as error:
        raise LongFocusError(
            f"{path} cannot be read: {error.strerror}. Check its rights, or take it out of the folder."
        ) from error
