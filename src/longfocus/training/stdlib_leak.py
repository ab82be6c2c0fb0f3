"""Keeps the Python standard library out of the training text, copies of it included.

The demonstrations hide pass keys in the standard library's own source code, so no model that is shipped may
have been trained on it. A file counts as a copy when its text is that of a standard library file, or when more
than half of its long lines occur there. Packages that are known to carry copies are left out as a whole.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LONG_LINE_CHARACTERS = 60
"""Shorter lines (`import os`, `else:`) occur everywhere and prove nothing."""

COPY_SHARE = 0.5
"""A file whose long lines occur in the standard library to more than this share is a copy."""

PACKAGES_WITH_COPIES = frozenset(
    {
        "_distutils_hack",
        "backports",
        "dill",
        "distutils",
        "importlib_metadata",
        "importlib_resources",
        "multiprocess",
        "pip",
        "pkg_resources",
        "setuptools",
        "test",
        "typing_extensions",
        "zipp",
    }
)
"""Packages that bundle back-ports or forks of standard library modules."""


def read_source(path: Path) -> str:
    """The text of a source file; bytes that are not UTF-8 are replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class SourceIndex:
    """What the files of a source tree contain: content hashes, and their long lines."""

    contents: frozenset[str]
    long_lines: frozenset[str]

    @classmethod
    def of_files(cls, paths: Iterable[Path]) -> "SourceIndex":
        return cls.of_texts(read_source(path) for path in paths)

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "SourceIndex":
        contents, lines = set(), set()
        for text in texts:
            if text.strip():
                contents.add(content_hash(text))
                lines.update(long_lines(text))
        return cls(frozenset(contents), frozenset(lines))

    def joined(self, other: "SourceIndex") -> "SourceIndex":
        return SourceIndex(self.contents | other.contents, self.long_lines | other.long_lines)

    def copied_share(self, text: str) -> float:
        """Share of the long lines of `text` that occur in the index; 0 where there are none."""
        lines = long_lines(text)
        return sum(line in self.long_lines for line in lines) / len(lines) if lines else 0.0

    def is_copy(self, text: str) -> bool:
        """True for a file of the index itself or one that is mostly made of its lines."""
        return content_hash(text) in self.contents or self.copied_share(text) > COPY_SHARE


def content_hash(text: str) -> str:
    """Hash of a text that spaces at the ends of lines and empty lines do not change."""
    lines = (line.rstrip() for line in text.splitlines())
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()


def long_lines(text: str) -> list[str]:
    """The lines of a text that are long enough to be told apart, without indentation."""
    return [line.strip() for line in text.splitlines() if len(line.strip()) > LONG_LINE_CHARACTERS]


@dataclass(frozen=True)
class LeakReport:
    """How much of the standard library a set of training texts contains."""

    files: int
    """Training files looked at."""

    copied_files: int
    """Training files that are copies of a standard library file (must be 0)."""

    known_line_share: float
    """Share of the standard library's long lines that occur somewhere in the training texts."""


def leak_report(texts: Iterable[str], index: SourceIndex) -> LeakReport:
    """Compares training texts with the standard library, independently of how they were chosen."""
    files, copied, seen = 0, 0, set()
    for text in texts:
        files += 1
        copied += index.is_copy(text)
        seen.update(line for line in long_lines(text) if line in index.long_lines)
    return LeakReport(files, copied, len(seen) / max(1, len(index.long_lines)))
