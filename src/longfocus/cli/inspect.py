"""`longfocus inspect FILE`: what a document memory, a session or a library holds, without a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import printable

if TYPE_CHECKING:
    from longfocus.memory.document import DocumentMemory

SHOWN_LINES = 3
SHOWN_CHARACTERS = 100
_WIDE = 1000


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show what a file or a library holds."""

    path: Annotated[Path, tyro.conf.Positional]
    """A document file, a session file, or the folder of a library."""
    verify: bool = False
    """Check every byte against the checksums; else only the header is checked."""


def run(arguments: Arguments) -> int | None:
    if arguments.path.is_dir():
        return _library(arguments.path, arguments.verify)
    from longfocus.memory.description import FORMAT
    from longfocus.memory.document import DocumentMemory
    from longfocus.memory.tensor_file import TensorFile

    file = TensorFile(arguments.path)
    if file.header.metadata.get("format") == FORMAT:
        document = DocumentMemory.load(arguments.path)
        if arguments.verify:
            document.verify()
        _document(document, arguments.verify)
    else:
        for name in file.header.entries if arguments.verify else ():
            file.verify(name)
        _other(file, arguments.verify)
    return None


def _library(folder: Path, verify: bool) -> int | None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from longfocus.inference.journal import unfinished
    from longfocus.inference.page.html import counted
    from longfocus.memory.library import Library

    library, broken, tokens = Library(folder), [], 0
    table = Table("document", "tokens", "MiB", "type", "metadata")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name in library.names():
        try:
            document = library.open(name)
            if verify:
                document.verify()
        except LongFocusError as error:
            broken.append(str(error))
            continue
        own = ", ".join(f"{key}={value}" for key, value in document.metadata.items())
        size = f"{document.nbytes / 2**20:,.1f}"
        cells = (name, f"{document.tokens:,}", size, document.description.dtype, own)
        # names may look like markup, and hold anything
        table.add_row(*(Text(printable(cell)) for cell in cells))
        tokens += document.tokens
    console = Console()
    if not console.is_terminal:
        # other programs want whole lines
        console.width = _WIDE
    console.print(table)
    print(f"{counted(len(table.rows), 'document')}, {tokens:,} tokens")
    for journal in unfinished(folder):
        name = printable(journal.name) or "a document (its journal does not say which)"
        print(
            f"unfinished: {name}, {journal.nbytes / 2**20:,.1f} MiB. The same `longfocus read` command goes on "
            f"with it; to give it up, remove {printable(str(journal.path))}"
        )
    for message in broken:
        print(f"damaged: {printable(message)}")
    return 2 if broken else None


def _document(document: "DocumentMemory", is_verified: bool) -> None:
    from longfocus.inference.page.html import counted

    described, file = document.description, document.file
    assert file is not None
    read_with = described.read_with
    per_token = document.nbytes / document.tokens
    blocks = sum(map(len, file.header.checksums.values()))
    rows = {
        "document": described.name,
        "tokens": f"{document.tokens:,}",
        "file": f"{file.nbytes:,} bytes, {per_token:,.0f} per token for keys and values",
        "memory": f"layers {described.memory_layers}, {described.kv_heads} KV heads of size {described.head_dim}, "
        f"{described.dtype}",
        "read with": f"positions {read_with.positions}, window {read_with.window}"
        + (f", prefix {read_with.window_prefix}" if read_with.window_prefix else ""),
        "model": ", ".join(f"{key} {value}" for key, value in read_with.model.items()),
        "tokenizer": read_with.tokenizer or "none (token ids)",
        "metadata": ", ".join(f"{k}={v}" for k, v in described.metadata.items()) or "none",
        "source": f"{described.source_characters:,} characters, sha256 {described.source_sha256}"
        if described.source_sha256
        else "token ids",
        "hash": document.hash,
        "checksums": f"all {blocks} blocks verified"
        if is_verified
        else f"header verified, {blocks} blocks not yet (--verify)",
    }
    _print(rows)
    if document.parts:
        together = ", read together" if described.is_together else ""
        print(f"\n{counted(len(document.parts), 'part')}{together}:")
        for part in document.parts[:SHOWN_LINES]:
            print(f"  {printable(part.name)}: characters {part.start:,} to {part.end:,}")
        if len(document.parts) > SHOWN_LINES:
            print(f"  ... and {len(document.parts) - SHOWN_LINES} more")
    _print_text(document)


def _print_text(document: "DocumentMemory") -> None:
    """First and last lines of the source."""
    from longfocus.inference.page.html import counted

    lines = (document.text or "").splitlines()
    if not lines:
        return
    shown = (
        lines
        if len(lines) <= 2 * SHOWN_LINES
        else [*lines[:SHOWN_LINES], "...", *lines[-SHOWN_LINES:]]
    )
    print(f"\n{counted(len(lines), 'line')}:")
    for line in shown:
        text = printable(line[:SHOWN_CHARACTERS].expandtabs())
        print(f"  | {text}{'...' if len(line) > SHOWN_CHARACTERS else ''}")


def _other(file: Any, is_verified: bool) -> None:
    """A session, or a file of a newer LongFocus."""
    metadata = file.header.metadata
    blocks = sum(map(len, file.header.checksums.values()))
    rows = {
        "kind": str(metadata.get("format")),
        "version": str(metadata.get("version")),
        "file": f"{file.nbytes:,} bytes",
        "messages": str(len(_tables(metadata.get("messages")))),
        "documents": ", ".join(str(d.get("name")) for d in _tables(metadata.get("documents")))
        or "none",
        "checksums": f"all {blocks} blocks verified"
        if is_verified
        else f"header verified, {blocks} blocks not yet (--verify)",
    }
    _print(rows)


def _tables(given: Any) -> list[dict[str, Any]]:
    """What is a list of tables: a file may say anything."""
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def _print(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {printable(value)}")
