"""Packages that only training from files needs: `pip install 'longfocus[train]'`. Imported where they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

from longfocus.errors import LongFocusError


@contextmanager
def train_extra(what: str) -> Iterator[None]:
    """Around the import of such a package: says what needs it and how it is installed."""
    try:
        yield
    except ImportError as error:
        raise LongFocusError(
            f"{what} needs the package {error.name}, which is not installed. It comes with the extra `train`: "
            "pip install 'longfocus[train]'"
        ) from error
