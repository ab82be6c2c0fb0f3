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

if TYPE_CHECKING:
    from longfocus.inference.collect import Collected


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
    metadata: tuple[str, ...] = field(default=())
    """Entries to select documents by, each KEY=VALUE."""


def run(arguments: Arguments) -> int | None:
    from rich.console import Console

    sources = _sources(arguments)
    metadata = entries(arguments.metadata)
    model, tokenizer = load(arguments)

    from longfocus.inference.prompts import starting_ids
    from longfocus.memory.library import Library

    console = Console(highlight=False, soft_wrap=True)
    library = Library(arguments.library)
    prefix = starting_ids(arguments.window_prefix or (), tokenizer)
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
        document = collected.document
        console.print(
            f"{collected.outcome:<10} {document.name}: {document.tokens:,} tokens, "
            f"{document.nbytes / 2**20:,.1f} MiB",
            markup=False,
        )
    return 2 if failed else None


def _sources(arguments: Arguments) -> list[tuple[Any, str | None]]:
    """What is read, and under which name."""
    if not arguments.sources:
        raise LongFocusError("There is nothing to read. Give files or folders.")
    given: list[Any] = [
        [sys.stdin.read()] if str(path) == "-" else path for path in arguments.sources
    ]
    if missing := [path for path in given if isinstance(path, Path) and not path.exists()]:
        raise LongFocusError(f"There is no file or folder {missing[0]}. Check the path.")
    if arguments.together:
        from longfocus.inference.source import together

        return [(together(given), arguments.name)]
    if arguments.name is not None and len(given) > 1:
        raise LongFocusError(
            f"--name names one document. Got {len(given)} sources. Leave it out, or read them --together."
        )
    if not all(isinstance(path, Path) for path in given):
        return [(source, arguments.name or "stdin") for source in given]
    names = [path.resolve().name for path in given]
    if arguments.name is None:
        # files of one name in several folders are told apart by their paths
        names = [
            name if names.count(name) == 1 else path.as_posix()
            for name, path in zip(names, given, strict=True)
        ]
        if len(set(names)) < len(names):
            raise LongFocusError("A source was given twice. Give each once.")
    return [(path, arguments.name or name) for path, name in zip(given, names, strict=True)]


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
            metadata=metadata,
            progress=report,
        )
