"""Rows: documents, settings and states that cannot be used are refused with the reason."""

import re
from typing import Any

import pytest
from plain_rows import ReadAgain, document, documents

from longfocus.errors import LongFocusError
from longfocus.training.rows import document_rows, linear_rows

SIZES = {"batch_size": 4, "length": 8}
GOOD = [document(0, 20)]


@pytest.mark.parametrize(
    ("items", "changed", "reason"),
    [
        (GOOD, {"batch_size": 3, "packing": 2}, "batch_size=3 is not divisible by packing=2.*=4"),
        (GOOD, {"batch_size": 2, "packing": 3}, "batch_size=2 is not divisible by packing=3.*=3"),
        (GOOD, {"length": 0}, "length must be at least 1. Got 0"),
        (GOOD, {"batch_size": 0}, "batch_size must be at least 1. Got 0"),
        (GOOD, {"packing": -1}, "packing must be at least 1. Got -1"),
        (5, {}, "must be an iterable of .* Got int"),
        ([], {}, "empty: there was no document"),
        (iter([]), {}, "empty: there was no document"),
        ([document(0, 1), document(0, 0)], {}, "too short: 2 documents"),
        ([([1, 2], [1], "a")], {}, r"loss mask of document 0 \(a\) .*\(2,\). Got \(1,\)"),
        ([*GOOD, ([1, -1], [1, 1], "b")], {}, r"document 1 \(b\) must lie in 0.*Got -1..1"),
        ([([1, 2**31], [1, 1], "b")], {}, r"Got 1..2147483648"),
        ([([1.5, 2], [1, 1], "b")], {}, r"must be integers.*Got float64"),
        ([([[1, 2]], [[1, 1]], "b")], {}, r"one dimension. Got int64 \(1, 2\)"),
        ([([1, 2], [1, 1])], {}, "Document 0 must be .*Got tuple"),
        (["text"], {}, "Document 0 must be .*Got str"),
        ([5], {}, "Document 0 must be .*Got int"),
    ],
)
def test_what_makes_no_rows_is_refused_with_the_reason(
    items: Any, changed: dict[str, int], reason: str
) -> None:
    with pytest.raises(LongFocusError, match=reason):
        list(document_rows(items, **{**SIZES, **changed}))


@pytest.mark.parametrize(
    "other",
    [
        lambda items: document_rows(items, batch_size=4, length=9),
        lambda items: document_rows(items, batch_size=2, length=8),
        lambda items: document_rows(items, batch_size=4, length=8, packing=2),
        lambda items: document_rows(items, batch_size=4, length=8, pad=True),
        lambda items: linear_rows(items, batch_size=4, length=8),
    ],
)
def test_a_state_of_other_settings_is_refused(other: Any) -> None:
    rows = document_rows(documents([50] * 8), batch_size=4, length=8)
    next(iter(rows))
    with pytest.raises(LongFocusError, match=r"rows of other settings \(.*there .*, here "):
        other(documents([50] * 8)).load_state_dict(rows.state_dict())
    with pytest.raises(LongFocusError, match="format: there None, here 1"):
        rows.load_state_dict({})


@pytest.mark.parametrize("kind", [list, ReadAgain])
def test_a_state_of_other_documents_is_refused(kind: Any) -> None:
    rows = document_rows(kind(documents([50] * 8)), batch_size=4, length=8)
    state = [rows.state_dict() for _ in rows][3]
    for lengths, reason in (
        ([50] * 3, "saved after 4 documents, but there are only 3"),
        ([50, 50, 49, 50], "Document 2 has 49 tokens, but had 50"),
    ):
        with pytest.raises(LongFocusError, match=re.escape(reason)):
            document_rows(kind(documents(lengths)), batch_size=4, length=8).load_state_dict(state)
