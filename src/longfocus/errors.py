"""The errors that LongFocus raises for its users.

A message has four parts: what is wrong, what was got, what is allowed, what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class LongFocusError(ValueError):
    """Something that the user gave cannot be used; the message says why and what to do."""


class NewerFormat(LongFocusError):
    """A file that a newer LongFocus wrote: it is whole, and must not be replaced as if it were damaged."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the import of a package of an extra: says what needs it and how it is installed."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise LongFocusError(
            f"{what} needs the package {package}, which is not installed. It comes with the extra `{name}`: "
            f'pip install "longfocus[{name}]"'
        ) from error
