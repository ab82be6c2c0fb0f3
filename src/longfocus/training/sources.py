"""Where documents come from: one `Source` per folder, file or dataset, several make a mixture.

    sources = [Source("books", weight=60), Source("repositories", kind="code", weight=40, min_tokens=2048)]
    corpus = prepare(sources, tokenizer, cache=Path("cache"))        # tokenised.py
    documents = Order(corpus, seed=0)                                # mixture.py
    batches = document_rows(documents, batch_size=64, length=2048)   # rows.py

Here: what a source is, and which kind a path is of. Reading the kinds is `records.py` (files) and `tables.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import files_under

Kind = Literal["text", "code", "jsonl", "parquet", "dataset"]

LINES = frozenset({".jsonl", ".ndjson"})
_CODE_NAMES = (
    "c cc clj cpp cs cu el ex f90 go h hpp hs java jl js kt lean lisp lua m ml pl php py pyx r rb rs scala sh sql "
    "swift thy ts tsx v vue zig"
)
CODE = frozenset(f".{name}" for name in _CODE_NAMES.split())
"""What makes a folder code where `kind` is left out: most of its files end so."""


@dataclass(frozen=True)
class Source:
    """One place with documents."""

    path: str
    """A file, a folder, or with kind="dataset" also a name on the Hugging Face hub. A Path is kept as its string."""

    kind: Kind | None = None
    """text: every file is a document. code: a folder is one document, and a folder of nothing but folders has one for
    each of them. jsonl and parquet: every line or row. dataset: of the library `datasets`, by its name or saved with
    save_to_disk. None: what the path looks like."""

    name: str | None = None
    """In metrics; None: the last part of the path."""

    weight: float | None = None
    """Share of this source's tokens in the mixture, relative to the others; None for all: by their sizes."""

    min_tokens: int = 1
    """Shorter documents are left out."""

    text_field: str | None = None
    """Field with the text, or with a list of chat messages; None: `text`, else `messages`."""

    pattern: str = "*"
    """Which files of a folder are read, such as "*.py"; hidden ones never are."""

    subset: str | None = None
    """Configuration of a dataset that has several."""

    split: str = "train"
    """Part of a dataset."""

    stream: bool = False
    """Tokenise while training and keep nothing: for what is too large to be kept."""

    def __post_init__(self) -> None:
        # so that a recipe with sources can be saved as JSON
        object.__setattr__(self, "path", str(self.path))
        if self.kind is not None and self.kind not in get_args(Kind):
            raise LongFocusError(
                f"kind of the source {self.path} must be one of {', '.join(get_args(Kind))}. Got {self.kind!r}. "
                "Leave it out to have it found out."
            )
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise LongFocusError(
                f"weight of the source {self.path} must be a number above 0. Got {self.weight}. Leave a source out "
                "instead of giving it no weight."
            )
        if self.min_tokens < 1:
            raise LongFocusError(
                f"min_tokens of the source {self.path} must be at least 1. Got {self.min_tokens}. 1 keeps all "
                "documents."
            )

    @property
    def label(self) -> str:
        """The name that metrics and messages use."""
        return self.name or Path(self.path).name or self.path


def check_mixture(sources: Sequence[Source]) -> None:
    """Refuses sources that make no mixture: none, two of one name, weights for some only."""
    if not sources:
        raise LongFocusError(
            "There is no source of documents. Give at least one, such as Source('folder')."
        )
    labels = [source.label for source in sources]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise LongFocusError(
            f"Sources must have different names. Got {', '.join(map(repr, twice))} more than once. Give each path "
            "once, or each Source a name=..."
        )
    without = [source.label for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise LongFocusError(
            f"Either all sources have a weight or none. Got none for {', '.join(map(repr, without))}. Give weight=... "
            "for each, or for none to mix them by their sizes."
        )


def kind_of(source: Source) -> Kind:
    """The kind that is given, or that of what lies at the path; refuses a missing path."""
    path = local_path(source)
    if source.kind == "dataset":
        return "dataset"
    if not path.exists():
        raise LongFocusError(
            f"There is no file or folder {source.path}. Data are a path that exists, or with the kind 'dataset' the "
            "name of a Hugging Face dataset. Check the path, or give the kind (--kind, or kind= of a Source)."
        )
    return source.kind or (_kind_of_file(path) if path.is_file() else _kind_of_folder(source, path))


def local_path(source: Source) -> Path:
    return Path(source.path).expanduser()


def _kind_of_file(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix in LINES or suffix == ".json":
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    return "code" if suffix in CODE else "text"


def _kind_of_folder(source: Source, path: Path) -> Kind:
    if is_saved_dataset(path):
        return "dataset"
    suffixes = [file.suffix.lower() for file in files_under(path, source.pattern)]
    has_lines, has_parquet = not LINES.isdisjoint(suffixes), ".parquet" in suffixes
    if has_lines and has_parquet:
        raise LongFocusError(
            f"{source.path} holds both .jsonl and .parquet files, and one source has one kind. Give it, jsonl or "
            "parquet (--kind, or kind= of a Source)."
        )
    if has_lines or has_parquet:
        return "jsonl" if has_lines else "parquet"
    is_code = 2 * sum(suffix in CODE for suffix in suffixes) > len(suffixes)
    return "code" if is_code else "text"


def is_saved_dataset(path: Path) -> bool:
    """True for what `datasets` wrote with save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )
