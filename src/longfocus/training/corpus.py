"""The training text: source code of the Python packages that are installed next to LongFocus.

A document is a package or a sub-package (to depth 3): its files in path order, leading licence comments cut.
It is tokenised once into `tokens.bin` (uint16) with one line of `documents.jsonl` per finished document, so that
an interrupted run goes on where it stopped. The standard library is never part of it (`stdlib_leak`).
"""

import hashlib
import json
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from longfocus.core import standard_library
from longfocus.errors import LongFocusError
from longfocus.training.stdlib_leak import (
    PACKAGES_WITH_COPIES,
    SourceIndex,
    read_source,
)

DOCUMENT_DEPTH = 3
MAX_PACKAGE_BYTES = 4_000_000
MIN_DOCUMENT_BYTES = 4_000
OWN_PACKAGE = "longfocus"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Document:
    """One package or sub-package: what belongs together is one text."""

    name: str
    """Dotted name, such as `torch.nn.modules`."""

    files: tuple[Path, ...]
    size_bytes: int

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    def text(self) -> str:
        """The files in path order, without leading licence comments; one newline before each file."""
        return "".join("\n" + without_licence(read_source(path)).rstrip() for path in self.files)


@dataclass(frozen=True)
class CorpusSource:
    """What the training text was made of; equal sources give equal training texts."""

    packages: dict[str, str]
    """Top-level package -> version ("unknown" where the package states none)."""

    documents: int
    bytes: int
    sha256: str
    """Hash over the names and contents of all files used, in order."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus on disk."""

    tokens: np.ndarray
    """Token ids of all documents, one after the other (uint16, memory-mapped)."""

    starts: np.ndarray
    """Where each document begins in `tokens`, and the end of the last (documents + 1)."""

    names: tuple[str, ...]

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def without_licence(text: str) -> str:
    """The text without the comment lines and blank lines that it begins with."""
    lines = text.splitlines()
    start = next(
        (i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines)
    )
    return "\n".join(lines[start:])


def site_packages() -> Path:
    """Where the running interpreter's packages are installed."""
    return Path(sysconfig.get_paths()["purelib"])


def find_documents(
    root: Path | None = None,
    *,
    index: SourceIndex | None = None,
    max_package_bytes: int = MAX_PACKAGE_BYTES,
    only: frozenset[str] | None = None,
    leave_out: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> list[Document]:
    """The documents of all packages under `root` (default: site-packages), in name order.

    Files of `index` (default: the standard library) and copies of them are left out. A package above
    `max_package_bytes` gives as many of its documents as fit, in an order that depends on their names alone.
    """
    root = root or site_packages()
    index = index or standard_library_index()
    packages = [
        path
        for path in sorted(root.iterdir())
        if _is_training_package(path)
        and path.name not in leave_out
        and (only is None or path.name in only)
    ]
    documents = []
    for done, package in enumerate(packages):
        documents += _package_documents(package, index, max_package_bytes)
        if progress:
            progress(done + 1, len(packages))
    if not documents:
        raise LongFocusError(
            f"There is no training text: no Python package with enough source code under {root}. "
            "Packages such as torch, sympy or networkx are used. Install some into this environment."
        )
    return documents


@cache
def standard_library_index() -> SourceIndex:
    """The standard library's files and long lines; a few seconds the first time."""
    return SourceIndex.of_files(standard_library.source_files())


def _is_training_package(path: Path) -> bool:
    name = path.name
    is_package = path.is_dir() and "." not in name and "-" not in name and name != "__pycache__"
    return is_package and name != OWN_PACKAGE and name not in PACKAGES_WITH_COPIES


def _package_documents(package: Path, index: SourceIndex, max_bytes: int) -> list[Document]:
    groups: dict[str, list[tuple[Path, int]]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        folders = path.relative_to(package.parent).parts[:-1]
        text = read_source(path)
        if (
            not PACKAGES_WITH_COPIES.intersection(folders)
            and text.strip()
            and not index.is_copy(text)
        ):
            groups[".".join(folders[:DOCUMENT_DEPTH])].append(
                (path, len(text.encode(errors="replace")))
            )
    documents = [
        Document(name, tuple(path for path, _ in files), sum(size for _, size in files))
        for name, files in groups.items()
    ]
    documents.sort(key=lambda document: hashlib.sha256(document.name.encode()).digest())
    chosen, total = [], 0
    for document in documents:
        fits = (
            document.size_bytes >= MIN_DOCUMENT_BYTES and total + document.size_bytes <= max_bytes
        )
        if fits:
            chosen.append(document)
            total += document.size_bytes
    return sorted(chosen, key=lambda document: document.name)


def corpus_source(documents: list[Document]) -> CorpusSource:
    """Names, versions and a hash of everything the documents contain."""
    digest = hashlib.sha256()
    for document in documents:
        for path in document.files:
            digest.update(f"{document.name}/{path.name}\0".encode())
            digest.update(path.read_bytes())
    packages = sorted({document.package for document in documents})
    return CorpusSource(
        packages={name: _version(name) for name in packages},
        documents=len(documents),
        bytes=sum(document.size_bytes for document in documents),
        sha256=digest.hexdigest(),
    )


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _version(package: str) -> str:
    for distribution in _distributions().get(package, []):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def tokenise_corpus(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Tokenises the documents into `folder`, going on after the last finished one; cheap when all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = _finished_documents(folder)
    if [name for name, _ in finished] != [document.name for document in documents[: len(finished)]]:
        raise LongFocusError(
            f"{folder} holds the tokens of another corpus (other packages are installed now). "
            "A run goes on only with the same packages. Delete the folder or choose another --output."
        )
    with (
        (folder / "tokens.bin").open("ab") as out,
        (folder / "documents.jsonl").open("a") as journal,
    ):
        out.truncate(2 * sum(count for _, count in finished))
        total = sum(document.size_bytes for document in documents)
        done = sum(document.size_bytes for document in documents[: len(finished)])
        for document in documents[len(finished) :]:
            tokens = _tokens(document.text(), tokenizer)
            out.write(tokens.tobytes())
            out.flush()
            journal.write(json.dumps([document.name, len(tokens)]) + "\n")
            journal.flush()
            done += document.size_bytes
            if progress:
                progress(done, total)
    return open_corpus(folder)


def _finished_documents(folder: Path) -> list[tuple[str, int]]:
    journal = folder / "documents.jsonl"
    if not journal.exists():
        return []
    complete = [
        line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    journal.write_text("".join(complete))
    return [(name, count) for name, count in map(json.loads, complete)]


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, part_lines: int = 2000) -> np.ndarray:
    """Token ids of a long text, in parts of whole lines: the tokenizer never joins two lines."""
    lines = text.split("\n")
    parts = [
        "".join("\n" + line for line in lines[i : i + part_lines])
        for i in range(1, len(lines), part_lines)
    ]
    encoded = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in encoded])


def open_corpus(folder: Path) -> Corpus:
    """A corpus written by `tokenise_corpus`, memory-mapped."""
    finished = _finished_documents(folder)
    starts = np.cumsum([0, *(count for _, count in finished)])
    tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r", shape=(int(starts[-1]),))
    return Corpus(tokens=tokens, starts=starts, names=tuple(name for name, _ in finished))


def iterate_texts(documents: list[Document]) -> Iterator[str]:
    """The texts of the documents, one at a time."""
    return (document.text() for document in documents)


def save_source(source: CorpusSource, path: Path) -> None:
    path.write_text(json.dumps(asdict(source), indent=1) + "\n")
