"""Which reader a kind of source has. A new kind is a class with the face of `records.Reader`, and a line here."""

from longfocus.training.records import CodeReader, LinesReader, Reader, TextReader
from longfocus.training.sources import Source, kind_of
from longfocus.training.tables import DatasetReader, ParquetReader

READERS = {
    "text": TextReader,
    "code": CodeReader,
    "jsonl": LinesReader,
    "parquet": ParquetReader,
    "dataset": DatasetReader,
}


def open_reader(source: Source) -> Reader:
    """The reader of a source's kind. Raises LongFocusError where there is nothing to read."""
    return READERS[kind_of(source)](source)
