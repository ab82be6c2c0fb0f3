"""A reading that is interrupted, wherever it may be, goes on to exactly the document that it would have been."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import longfocus
from long import mostly_long
from longfocus import LongFocusError
from longfocus.inference import reader, source
from longfocus.inference import session as session_module
from longfocus.memory import store
from small import TEXT, assert_same_pairs, byte_tokenizer, keys, session, small_model

every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 1)], (0, 1)), ids=str)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows at a time where they are independent, and several pieces of text."""
    monkeypatch.setattr(reader, "BATCH_TOKENS", 32)
    monkeypatch.setattr(source, "PIECE", 40)


def assert_same_document(one: longfocus.DocumentMemory, other: longfocus.DocumentMemory) -> None:
    assert_same_pairs(one, other)
    assert one.text == other.text == TEXT
    assert one.offsets is not None
    assert other.offsets is not None
    assert one.offsets.equal(other.offsets)


@pytest.mark.parametrize("when", ["before", "after"])
@every_memory
def test_interrupted_at_any_window_the_same_call_goes_on(
    layers: tuple[int, ...], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = session(layers).read(TEXT)
    read_window = type(small_model(layers)).read_window
    windows, interrupted = 0, set()

    def interrupted_once(self: Any, *args: Any) -> None:
        nonlocal windows
        if when == "after":
            read_window(self, *args)
        windows += 1
        if windows - len(interrupted) not in interrupted:
            interrupted.add(windows - len(interrupted))
            raise KeyboardInterrupt
        if when == "before":
            read_window(self, *args)

    monkeypatch.setattr(type(small_model(layers)), "read_window", interrupted_once)
    reading = session(layers)
    interruptions = 0
    while not reading.documents:
        try:
            reading.read(TEXT)
        except KeyboardInterrupt:
            interruptions += 1
            assert reading.documents == []
    assert interruptions == len(interrupted) > 4
    # every window was read once and refused once: nothing was read twice
    assert windows == 2 * interruptions
    assert_same_document(reading.documents[0], expected)


class Interrupting:
    """A tokenizer that is interrupted at its call of a given number."""

    is_fast = True

    def __init__(self, number: int) -> None:
        self.calls_left = number
        self.tokenizer: PreTrainedTokenizerFast = byte_tokenizer()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return self.tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("kind", ["text", "file", "list"])
def test_interrupted_in_the_tokenizer_the_same_call_goes_on(
    kind: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    given: Any = {"text": TEXT, "file": tmp_path / "text.txt", "list": [TEXT[:30], TEXT[30:]]}[kind]
    reading = longfocus.Session(small_model(), Interrupting(number))
    with pytest.raises(KeyboardInterrupt):
        reading.read(given)
    assert_same_document(reading.read(given), session().read(TEXT))
    assert len(reading.documents) == 1


def test_an_iterator_that_was_interrupted_itself_cannot_be_continued_and_says_so() -> None:
    def texts() -> Iterator[str]:
        yield TEXT
        raise KeyboardInterrupt

    reading, given = session(), texts()
    with pytest.raises(KeyboardInterrupt):
        reading.read(given)
    with pytest.raises(LongFocusError, match="cannot be continued"):
        reading.read(given)
    assert reading.documents == []


def test_an_iterator_goes_on_when_the_reading_of_a_window_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_window = type(small_model()).read_window
    raising = iter([False, True, False, True, True])

    def sometimes(self: Any, *args: Any) -> None:
        if next(raising, False):
            raise KeyboardInterrupt
        read_window(self, *args)

    monkeypatch.setattr(type(small_model()), "read_window", sometimes)
    reading, given = session(), iter([TEXT[:30], TEXT[30:]])
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            reading.read(given)
    assert_same_document(reading.read(given), session().read(TEXT))


def test_another_text_may_be_read_in_between() -> None:
    reading = longfocus.Session(small_model(), Interrupting(3))
    with pytest.raises(KeyboardInterrupt):
        reading.read(TEXT)
    between = reading.read("between")
    assert_same_document(reading.read(TEXT), session().read(TEXT))
    assert reading.documents[0] is between
    assert not keys(reading.documents[1])[0].equal(keys(between)[0])


def test_a_file_that_changed_meanwhile_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("other words\n" * 9)
    reading = longfocus.Session(small_model(), Interrupting(3))
    with pytest.raises(KeyboardInterrupt):
        reading.read(file)
    file.write_bytes(TEXT.encode())
    assert_same_document(reading.read(file), session().read(TEXT))


FILES = {module.__file__ for module in (reader, source, session_module, store)}


class InterruptAtLine:
    """Raises KeyboardInterrupt before the n-th line that is run in the given files."""

    def __init__(self, line: int, files: set[str]) -> None:
        self.lines_left, self.files = line, files

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.lines_left -= 1
            if self.lines_left == 0:
                raise KeyboardInterrupt
        return self


def interrupted_at_line(
    reading: longfocus.Session, given: Any, line: int, files: set[str] = FILES
) -> bool:
    before = sys.gettrace()
    sys.settrace(InterruptAtLine(line, files))
    try:
        reading.read(given)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("line", range(1, 16))
def test_an_iterator_interrupted_twice_is_never_read_in_part(
    line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, given = (
        longfocus.Session(small_model(), byte_tokenizer()),
        iter([TEXT[:50], TEXT[50:]]),
    )
    read_window = type(small_model()).read_window
    raising = iter([False, True])

    def once(self: Any, *args: Any) -> None:
        if next(raising, False):
            raise KeyboardInterrupt
        read_window(self, *args)

    monkeypatch.setattr(type(small_model()), "read_window", once)
    with pytest.raises(KeyboardInterrupt):
        reading.read(given)
    if not interrupted_at_line(reading, given, line, {session_module.__file__}):
        assert_same_document(reading.documents[-1], session().read(TEXT))
        return
    refusal = ""
    try:
        reading.read(given)
    except LongFocusError as error:
        refusal = str(error)
    # the second interruption may have come behind the last step
    assert not refusal or reading.documents or "cannot be continued" in refusal
    assert all(document.text == TEXT for document in reading.documents)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.long)])
@every_memory
def test_interrupted_at_any_line_the_same_call_goes_on(layers: tuple[int, ...], step: int) -> None:
    text = TEXT[:40]
    expected = session(layers).read(text)
    line, was_interrupted = 0, True
    while was_interrupted:
        line, reading = line + step, session(layers)
        was_interrupted = interrupted_at_line(reading, text, line)
        assert_same_pairs(reading.read(text), expected)
        assert reading.documents[-1].text == text
    assert line > 150
