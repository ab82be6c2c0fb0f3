"""Parquet files and Hugging Face datasets as records."""

from collections.abc import Iterator
from typing import Any

from longfocus.errors import LongFocusError, extra
from longfocus.training.records import Files, LeftOut, Record, content_of, missing_field
from longfocus.training.sources import Source, is_saved_dataset, local_path

ROWS_AT_ONCE = 64


class ParquetReader(Files):
    """Every row is a document."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, frozenset({".parquet"}))
        self._field = source.text_field

    def records(self, left_out: LeftOut) -> Iterator[Record]:
        with extra("train", "Reading parquet files"):
            import pyarrow
            from pyarrow import parquet
        before = 0
        for path, after in self.sized():
            try:
                file = parquet.ParquetFile(path)
            except (OSError, pyarrow.ArrowInvalid) as error:
                raise LongFocusError(
                    f"{path} is no parquet file that can be read: {error}. Repair it, or take it out of the folder."
                ) from error
            columns = [column_of(file.schema_arrow.names, self._field, str(path))]
            rows = max(file.metadata.num_rows, 1)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for entry in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    done = before + (after - before) * number // rows
                    yield Record(content_of(entry, columns[0], where), where, done)
            before = after


class DatasetReader:
    """A dataset of the `datasets` library: by name, or a folder."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._dataset = _load(source)
        self.total = 0 if source.stream else len(self._dataset)

    def identity(self) -> object:
        # the library's documented name of a dataset's content, although it begins with an underscore
        return self._dataset._fingerprint

    def records(self, left_out: LeftOut) -> Iterator[Record]:
        dataset, field, label = self._dataset, self._source.text_field, self._source.path
        # a streamed dataset may not know its columns before its first row
        if dataset.column_names is not None:
            field = column_of(dataset.column_names, field, label)
            dataset = dataset.select_columns([field])
        number = 0
        # not `for entry in dataset`: that gives a DataLoader worker some rows only, and `shards.py` divides them
        for columns in dataset.iter(ROWS_AT_ONCE):
            for values in zip(*columns.values(), strict=True):
                number += 1
                where = f"{label}, row {number}"
                entry = dict(zip(columns, values, strict=True))
                yield Record(content_of(entry, field, where), where, number)


def column_of(names: list[str], name: str | None, where: str) -> str:
    """The column with the text or the messages."""
    found = name or next((usual for usual in ("text", "messages") if usual in names), "text")
    if found not in names:
        raise missing_field(where, found, list(names))
    return found


def _load(source: Source) -> Any:
    """A Dataset, or an IterableDataset for a streamed one."""
    with extra("train", "Reading a dataset"):
        import datasets

    path = local_path(source)
    try:
        if is_saved_dataset(path):
            return _split_of(datasets.load_from_disk(str(path)), source)
        name = str(path) if path.exists() else source.path
        return datasets.load_dataset(
            name, source.subset, split=source.split, streaming=source.stream
        )
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, LongFocusError):
            raise
        raise LongFocusError(
            f"The dataset {source.path} cannot be loaded: {error} Give the name of a dataset on the hub, or a folder."
        ) from error


def _split_of(saved: Any, source: Source) -> Any:
    # a dict of splits, or one of them by itself
    if not isinstance(saved, dict):
        return saved
    if source.split not in saved:
        raise LongFocusError(
            f"The dataset {source.path} has no split {source.split!r}. It has {', '.join(map(repr, saved))}. Save "
            "one of them by itself, or give split= of a Source."
        )
    return saved[source.split]
