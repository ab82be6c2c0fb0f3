"""Values of a parametrised test of which only some are tried by the short tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_long(values: Iterable[Any], *short: Any) -> list[Any]:
    """All of them; those that are not `short` only by `make test-all`."""
    return [v if v in short else pytest.param(v, marks=pytest.mark.long) for v in values]
