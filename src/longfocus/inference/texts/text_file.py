"""Files of plain text, in bounded memory: UTF-8, or what a byte order mark at the beginning names.

A file is decoded twice, first to find out that it is text to its end. So what is wrong with it is said before a model
reads for hours.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from longfocus.inference.texts.unreadable import UnreadableFile

CHUNK = 2**18

# that of UTF-32 begins like that of UTF-16, so it comes first
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# no text has these: all below the blank but tab, line ends, page break, backspace and escape
_CONTROL = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f]")


def file_texts(file: BinaryIO, path: Path) -> Iterator[str]:
    """The characters of an open file as they are, line ends too. Raises UnreadableFile before the first of them."""
    file.seek(0)
    encoding = marked_encoding(file.read(4)) or "utf-8"
    for _ in _decoded(file, path, encoding):
        pass
    yield from _decoded(file, path, encoding)


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning names."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def looks_binary(path: Path) -> bool:
    """A guess from the first bytes, for estimates only; OSError where the file cannot be read."""
    with path.open("rb") as file:
        head = file.read(4096)
    return marked_encoding(head) is None and b"\0" in head


def refuse_binary(path: Path) -> UnreadableFile:
    """The error for a file that holds no text."""
    return UnreadableFile(
        path,
        "looks like a binary file",
        "Text, Markdown, code, HTML and PDF can be read: convert it to one of them.",
    )


def _decoded(file: BinaryIO, path: Path, encoding: str) -> Iterator[str]:
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)()
    is_last = False
    while not is_last:
        data = file.read(CHUNK)
        is_last = not data
        try:
            text = decoder.decode(data, final=is_last)
        except UnicodeDecodeError as error:
            if encoding == "utf-8" and _CONTROL.search(data):
                raise refuse_binary(path) from error
            # the decoder's input ends where the file stands
            place = file.tell() - len(error.object) + error.start
            name = encoding.removesuffix("-sig").upper()
            raise UnreadableFile(
                path,
                f"is not {name} text",
                "Convert it first, from Latin-1 for example with: iconv -f latin1 -t utf-8 FILE > NEW_FILE",
                f"{error.reason} at byte {place}",
            ) from error
        if "\0" in text:
            raise refuse_binary(path)
        if text:
            yield text
