"""A description comes back from its file as it was, and one that makes no sense is refused."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from jaxtyping import TypeCheckError

from longfocus import LongFocusError
from longfocus.memory.description import VERSION, Description, ReadWith
from longfocus.memory.header import canonical
from longfocus.memory.parts import SourcePart

READ_WITH = ReadWith("window_start", 16, (1, 2), {"weights": "abc"}, "def")
OWL = Description(
    name="owl 🦉/../%",
    tokens=63,
    dtype="bfloat16",
    memory_layers=(1, 3),
    kv_heads=2,
    head_dim=8,
    read_with=READ_WITH,
    source_sha256="ghi",
    source_characters=40,
    parts=(SourcePart("a", 2, 10), SourcePart("b", 10, 10), SourcePart("a", 12, 40)),
    metadata={"language": "en", "": ""},
    is_together=True,
)
LEAST = Description(
    name="",
    tokens=1,
    dtype="int8",
    memory_layers=(0,),
    kv_heads=1,
    head_dim=1,
    read_with=ReadWith("none", 2),
)
HALF = "\ud800"
NO_TEXT: list[Any] = [None, 1, 1.5, True, [], {}, HALF]
NO_NUMBER: list[Any] = [None, -1, 1.0, True, "1", [], {}, 2**63]
NO_COUNT: list[Any] = [0, *NO_NUMBER]
NO_TABLE: list[Any] = [None, 1, "x", [], [["a", "b"]], ["ab"], {"a": 1}, {"a": None}, {HALF: "b"}]
PART = {"name": "a", "start": 0, "end": 1}
WRONG: dict[str, list[Any]] = {
    "format": [None, 1, "", [], {}, "longfocus session"],
    "version": [VERSION + 1, *NO_COUNT],
    "name": NO_TEXT,
    "tokens": NO_COUNT,
    "dtype": ["float8", *NO_TEXT],
    "memory_layers": [None, 1, "1", [], {}, [-1], [1.0], [True], [3, 1], [1, 1], ["1"], [[1]]],
    "kv_heads": NO_COUNT,
    "head_dim": NO_COUNT,
    "read_with": [None, 1, "x", [], {}, list(READ_WITH.__dict__)],
    "source_sha256": NO_TEXT[1:],
    "source_characters": [39, *NO_NUMBER],
    "parts": [
        *(None, 1, "x", {}, [None], [1], ["x"], [[]], [{}], [["name", "start", "end"]]),
        [{**PART, "more": 1}],
        [{"name": "a", "start": 0}],
        [{**PART, "start": 2}],
        [{**PART, "end": 41}],
        [PART, PART],
        [{**PART, "start": 5, "end": 6}, PART],
        *([{**PART, "name": wrong}] for wrong in NO_TEXT),
        *([{**PART, "start": wrong}] for wrong in NO_NUMBER),
    ],
    "metadata": NO_TABLE,
    "is_together": [None, 0, 1, "true", 1.0, [], {}],
    "clusters": [None, -1, "5", 1.0, True, []],
}
WRONG_READ_WITH: dict[str, list[Any]] = {
    "positions": ["", "somewhere", *NO_TEXT],
    "window": NO_COUNT,
    "window_prefix": [None, 1, "1", {}, [-1], [1.0], [True], [None]],
    "model": NO_TABLE,
    "tokenizer": NO_TEXT[1:],
    "top_k": [0, -1, "5", 1.0, True, []],
    "retain": [0.0, 1.0, -0.5, 1, "0.5", True, []],
}


def given(description: Description = OWL) -> dict[str, Any]:
    """As a file has it."""
    return json.loads(canonical(description.to_dict()))


@pytest.mark.parametrize("description", [OWL, LEAST], ids=["full", "least"])
def test_a_description_comes_back(description: Description) -> None:
    assert Description.from_dict(given(description)) == description


def test_every_entry_is_tried_with_something_wrong() -> None:
    assert set(WRONG) == set(given())
    assert set(WRONG_READ_WITH) == {entry.name for entry in fields(ReadWith)}


def refused(values: dict[str, Any]) -> bool:
    """Whether it raises what opening a file turns into an error that names the file."""
    try:
        Description.from_dict(values)
    except TypeCheckError:
        # only in tests are types checked as they are written
        return False
    except (ValueError, TypeError, KeyError, AttributeError):
        return True
    return False


@pytest.mark.parametrize("entry", WRONG)
def test_a_wrong_entry_is_refused(entry: str) -> None:
    assert [wrong for wrong in WRONG[entry] if not refused({**given(), entry: wrong})] == []


@pytest.mark.parametrize("entry", WRONG_READ_WITH)
def test_a_wrong_entry_of_what_it_was_read_with_is_refused(entry: str) -> None:
    inner = given()["read_with"]
    accepted = [
        wrong
        for wrong in WRONG_READ_WITH[entry]
        if not refused({**given(), "read_with": {**inner, entry: wrong}})
    ]
    assert accepted == []


def test_missing_and_unknown_entries_are_refused() -> None:
    for entry in given():
        assert refused({name: value for name, value in given().items() if name != entry})
    assert refused({**given(), "more": 1})
    assert refused({**given(), "read_with": {**given()["read_with"], "more": 1}})


def test_another_format_and_a_newer_version_say_what_to_do() -> None:
    with pytest.raises(LongFocusError, match=r"a 'song', and not .* Give a file that"):
        Description.from_dict({**given(), "format": "song"})
    newer = {**given(), "version": VERSION + 1, "unheard_of": 1}
    with pytest.raises(LongFocusError, match=f"version {VERSION + 1} .* Install a newer LongFocus"):
        Description.from_dict(newer)


@pytest.mark.parametrize(
    "change",
    [{"name": HALF}, {"parts": (SourcePart("a", 5, 9), SourcePart("b", 8, 10))}, {"tokens": 0}],
    ids=["name", "parts", "empty"],
)
def test_what_could_not_be_read_back_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(LongFocusError, match=r"Document .* cannot be written: "):
        replace(OWL, **change).to_dict()


@pytest.mark.parametrize("value", [1869, None, object(), float("nan")])
def test_metadata_that_are_no_text_are_not_written(value: object) -> None:
    values: dict[str, Any] = {}
    owl = replace(OWL, metadata=values)
    # behind the back of the types
    values["year"] = value
    with pytest.raises(LongFocusError, match="Its name and its metadata must be text"):
        owl.to_dict()
