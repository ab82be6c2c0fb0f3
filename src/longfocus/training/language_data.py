"""What the language models are trained on and tested with: source code of packages, and code that is held out.

    DATA/train/NAME.py         a training document: a package or sub-package, a header line before each of its files
    DATA/held_out/NAME.py      the same of the standard library and of the packages HELD_OUT_PACKAGES
    DATA/tokenizer/            learnt from training documents
    DATA/source.json           packages, versions and a hash of the training documents
    DATA/held_out.json         hashes and numbers of tokens of the held-out documents, and the leak check; written last
    DATA/tokens/               the training documents as tokens (`tokenised.py`)
    DATA/recall/               training documents with lines to be recalled (`recall_documents.py`)
    DATA/passkey_words.json    words of the names in these, and others that are in none of them

What is held out is decided by name, before anything is trained. No training file is a copy of a held-out one, or made
of its lines to more than half, and no held-out file is made of training lines to more than half.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from longfocus.core import standard_library
from longfocus.errors import LongFocusError
from longfocus.training.corpus import (
    Document,
    corpus_source,
    find_documents,
    save_source,
    site_packages,
    without_licence,
)
from longfocus.training.language_recipe import LanguageRecipe
from longfocus.training.passkey_task import WORDS_FILE, choose_words
from longfocus.training.recall_documents import RecallSettings, write_recall_documents
from longfocus.training.stdlib_leak import (
    SourceIndex,
    leak_report,
    read_source,
)
from longfocus.training.tokenizer import train_tokenizer

HELD_OUT_PACKAGES = frozenset({"hypothesis", "jinja2", "joblib", "networkx", "pypdf", "rich"})
"""Whole packages that are never trained on, as far as they are installed."""

TRAIN, HELD_OUT, TOKENIZER, TOKENS = "train", "held_out", "tokenizer", "tokens"
HELD_OUT_FILE, SOURCE_FILE = "held_out.json", "source.json"
SAMPLE_EVERY = 6
"""The tokenizer is learnt from every sixth document."""

RECALL = "recall"
RECALL_EVERY, RECALL_CHARACTERS, RECALL_SEED = 3, 20_000, 0
"""Recall documents and their words are made of every third training document, if it has so many characters."""

NO_CAP = 2**60
NOTHING_KNOWN = SourceIndex(frozenset(), frozenset())

Prepare = Callable[[str, int, int], None]
"""Called with (what, done, total) while data is prepared."""


class _Text(NamedTuple):
    """A document with its text."""

    name: str
    text: str


def prepare_language_data(
    folder: Path,
    recipe: LanguageRecipe,
    prepare: Prepare = lambda what, done, total: None,
    *,
    packages: Path | None = None,
    library: list[Path] | None = None,
) -> None:
    """Make the data in `folder`, once; what is there already is kept, and refused if it is of another recipe."""
    _make_texts(folder, recipe, prepare, packages=packages, library=library)
    if not (folder / RECALL).exists():
        _make_recall(folder, recipe, prepare)


def _make_texts(
    folder: Path,
    recipe: LanguageRecipe,
    prepare: Prepare,
    *,
    packages: Path | None,
    library: list[Path] | None,
) -> None:
    about = {
        "vocabulary": recipe.vocabulary,
        "max_package_bytes": recipe.max_package_bytes,
        "held_out_packages": sorted(HELD_OUT_PACKAGES),
    }
    if (folder / HELD_OUT_FILE).exists():
        _check_same(folder, about)
        return
    root = packages or site_packages()
    library = standard_library.source_files() if library is None else library
    held_out = _held_out_documents(root, library)
    prepare("looking at packages", 0, 0)
    index = SourceIndex.of_files(path for document in held_out for path in document.files)
    # files of the library that are in no document are not trained on either
    index = index.joined(SourceIndex.of_files(library))
    training = find_documents(
        root,
        index=index,
        leave_out=HELD_OUT_PACKAGES,
        max_package_bytes=recipe.max_package_bytes,
        progress=lambda done, total: prepare("looking at packages", done, total),
    )
    prepare("checking for leaks", 0, 0)
    leak = check_leaks(training, index)
    known = SourceIndex.of_files(path for document in training for path in document.files)
    kept, copies = _without_copies(held_out, known)
    for name in (TRAIN, HELD_OUT):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    _write(folder / TRAIN, training, root)
    tokenizer = _tokenizer(folder, training, root, recipe.vocabulary, prepare)
    prepare("tokenising what is held out", 0, 0)
    library_root = _root_of(library)
    documents = [
        _described(text, tokenizer) for text in _write(folder / HELD_OUT, kept, root, library_root)
    ]
    save_source(corpus_source(training), folder / SOURCE_FILE)
    told = about | {"leak": leak, "left_out_as_copies": copies, "documents": documents}
    temporary = folder / "held_out.tmp"
    temporary.write_text(json.dumps(told, indent=1) + "\n")
    temporary.replace(folder / HELD_OUT_FILE)


def _make_recall(folder: Path, recipe: LanguageRecipe, prepare: Prepare) -> None:
    """Recall documents of some of the training documents; names are made of words of the same."""
    texts = [path.read_text() for path in sorted((folder / TRAIN).glob("*.py"))[::RECALL_EVERY]]
    codes = [text for text in texts if len(text) > RECALL_CHARACTERS] or texts
    words = choose_words(codes, RECALL_SEED)
    temporary = folder / "words.tmp"
    temporary.write_text(json.dumps(asdict(words)))
    temporary.replace(folder / WORDS_FILE)

    def tell(done: int, total: int) -> None:
        prepare("writing recall documents", done, total)

    settings = RecallSettings(documents=recipe.recall_documents)
    write_recall_documents(folder / RECALL, codes, words.train, settings, tell)


def check_leaks(training: list[Document], held_out: SourceIndex) -> dict[str, Any]:
    """How much of what is held out the training files contain. Raises LongFocusError if one of them is a copy."""
    files = (read_source(path) for document in training for path in document.files)
    found = leak_report(files, held_out)
    if found.copied_files:
        raise LongFocusError(
            f"{found.copied_files} of {found.files} training files are copies of held-out files. Nothing may be in "
            "both. Did packages change while they were read? Run the command again."
        )
    return asdict(found)


def headed_text(document: Document, *roots: Path) -> str:
    """The files in path order, a header line with the path before each, without leading licence comments."""
    parts = []
    for path in document.files:
        root = next(root for root in roots if path.is_relative_to(root))
        text = without_licence(read_source(path)).rstrip()
        parts.append(f"# {path.relative_to(root).as_posix()}\n{text}\n\n")
    return "".join(parts)


def _held_out_documents(packages: Path, library: list[Path]) -> list[Document]:
    """Documents of the held-out packages, and of the standard library: its packages, and its modules one by one."""
    root = _root_of(library)
    found = find_documents(root, index=NOTHING_KNOWN, max_package_bytes=NO_CAP) + [
        _module(path) for path in library if path.parent == root
    ]
    if any((packages / name).is_dir() for name in HELD_OUT_PACKAGES):
        found += find_documents(
            packages, index=NOTHING_KNOWN, max_package_bytes=NO_CAP, only=HELD_OUT_PACKAGES
        )
    return sorted(found, key=lambda document: document.name)


def _root_of(library: list[Path]) -> Path:
    return min(library, key=lambda path: len(path.parts)).parent


def _module(path: Path) -> Document:
    return Document(path.stem, (path,), path.stat().st_size)


def _without_copies(
    documents: list[Document], known: SourceIndex
) -> tuple[list[Document], list[str]]:
    """The documents without files that training has seen too much of, and the names of these."""
    kept, copies = [], []
    for document in documents:
        seen = {path for path in document.files if known.is_copy(read_source(path))}
        copies += [f"{document.name}: {path.name}" for path in document.files if path in seen]
        files = tuple(path for path in document.files if path not in seen)
        if files:
            kept.append(Document(document.name, files, document.size_bytes))
    return kept, copies


def _write(folder: Path, documents: Iterable[Document], *roots: Path) -> list[_Text]:
    """Each document as a file of its own; gives them."""
    texts = [_Text(document.name, headed_text(document, *roots)) for document in documents]
    for text in texts:
        (folder / f"{text.name}.py").write_text(text.text, errors="replace")
    return texts


def _tokenizer(
    folder: Path, training: list[Document], root: Path, entries: int, prepare: Prepare
) -> PreTrainedTokenizerBase:
    prepare("learning the tokenizer", 0, 0)
    sample = (headed_text(document, root) for document in training[::SAMPLE_EVERY])
    tokenizer = train_tokenizer(sample, entries)
    tokenizer.save_pretrained(folder / TOKENIZER)
    return tokenizer


def _described(text: _Text, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    data = text.text.encode(errors="replace")
    tokens = len(tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"])
    return {
        "file": f"{HELD_OUT}/{text.name}.py",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "tokens": tokens,
    }


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    found = json.loads((folder / HELD_OUT_FILE).read_text())
    differing = [
        f"{name}: there {found.get(name)!r}, asked {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise LongFocusError(
            f"{folder} holds data of another recipe ({'; '.join(differing)}). Choose another --data-folder."
        )
