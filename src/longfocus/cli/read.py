"""`longfocus read FILES... --library DIR --model MODEL`: texts into memory, one file each, for ever.

What is there unchanged is skipped. Stopped at any moment, the same command goes on behind the last finished step.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from longfocus.cli.model_options import ModelOptions, entries, load
from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import printable

if TYPE_CHECKING:
    from longfocus.inference.collect import Collected


STANDARD_INPUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelOptions):
    """Read texts, folders of code, PDF and HTML files into a library of document memories."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files and folders; each becomes one document. `-` is the standard input."""
    library: Path
    """Folder for the documents; made if it is missing."""
    name: str | None = None
    """Name of the document; the default is that of the file. Only for one source, or with --together."""
    together: bool = False
    """Read all sources as one stream, so that later ones see earlier ones. They cannot be taken apart again."""
    memory_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Number type of the memory in the file; the default is the model's."""
    search: Literal["dense", "exact", "clustered"] | None = None
    """How windows look into earlier ones, with several memory layers; `clustered` also sorts the pairs in the file, for
    `ask --search clustered`. The default is the model's."""
    metadata: tuple[str, ...] = field(default=())
    """Entries to select documents by, each KEY=VALUE."""


def run(arguments: Arguments) -> int | None:
    metadata = entries(arguments.metadata)
    sources = _sources(arguments)
    model, tokenizer = load(arguments)

    from longfocus.inference.prompts import starting_ids
    from longfocus.memory.library import Library

    prefix = starting_ids(arguments.prefix, tokenizer)
    library = Library(arguments.library)
    failed = 0
    for source, name in sources:
        try:
            collected = _read(library, model, tokenizer, source, name, prefix, arguments, metadata)
        except LongFocusError as error:
            if len(sources) == 1:
                raise
            # the others can still be read
            print(f"longfocus: error: {error}", file=sys.stderr)
            failed += 1
            continue
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            raise
        print(_told(collected), flush=True)
    return 2 if failed else None


def _told(collected: "Collected") -> str:
    document = collected.document
    told = (
        f"{collected.outcome:<10} {printable(document.name)}: {document.tokens:,} tokens, "
        f"{document.nbytes / 2**20:,.1f} MiB"
    )
    if collected.outcome == "replaced":
        # where a text came from is not kept in its file: that would be another file on every machine
        told += f" (held another text of {collected.tokens_before:,} tokens; --name keeps both)"
    return told


def _sources(arguments: Arguments) -> list[tuple[Any, str | None]]:
    """What is read, and under which name."""
    names = _names(arguments.sources)
    if arguments.name is not None and len(names) > 1 and not arguments.together:
        raise LongFocusError(
            f"--name names one document. Got {len(names)} sources. Leave it out, or read them --together."
        )
    given: list[Any] = [
        [_standard_input()] if path == STANDARD_INPUT else path for path in arguments.sources
    ]
    if arguments.together:
        from longfocus.inference.source import together

        return [(together(given), arguments.name)]
    return [(source, arguments.name or name) for source, name in zip(given, names, strict=True)]


def _names(sources: tuple[Path, ...]) -> list[str]:
    """A source is called like its file, or by its path where several files are called alike."""
    if not sources:
        raise LongFocusError(
            "There is nothing to read. Give files or folders, before options that take several words, such as "
            "--metadata."
        )
    places = [path if path == STANDARD_INPUT else path.resolve() for path in sources]
    for path, place in zip(sources, places, strict=True):
        if path != STANDARD_INPUT and not place.exists():
            raise LongFocusError(f"There is no file or folder {path}. Check the path.")
        if places.count(place) > 1:
            raise LongFocusError(f"{path} was given twice. Give each source once.")
    names = [
        "stdin"
        if path == STANDARD_INPUT
        # a link is called as it is given; `.` and `..` have no name of their own
        else (place.name if path.name in ("", "..") else path.name)
        for path, place in zip(sources, places, strict=True)
    ]
    return [
        name if names.count(name) == 1 else path.as_posix()
        for name, path in zip(names, sources, strict=True)
    ]


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise LongFocusError(
            f"The standard input is not {error.encoding} text ({error.reason} at byte {error.start}). Convert it "
            "first, from Latin-1 for example with: iconv -f latin1 -t utf-8"
        ) from error


def _read(
    library: Any,
    model: Any,
    tokenizer: Any,
    source: Any,
    name: str | None,
    prefix: tuple[int, ...],
    arguments: Arguments,
    metadata: dict[str, str],
) -> "Collected":
    from longfocus.inference.collect import read_into
    from longfocus.inference.progress import reading_bar
    from longfocus.inference.source import expected_tokens, name_of

    with reading_bar(name or name_of(source), expected_tokens(source)) as report:
        return read_into(
            library,
            model,
            tokenizer,
            source,
            name,
            window_prefix=prefix,
            memory_dtype=arguments.memory_dtype,
            search=arguments.search,
            metadata=metadata or None,
            progress=report,
        )
