"""Whatever stops a reading into a library, a new call goes on, and the file ends as it would have been."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from collecting import (
    CHANGES,
    SHORT,
    STEPS,
    every_memory,
    files,
    interrupting,
    read,
    small_batches,
    steps,
)

import longfocus
from kills import ends_when_killed_at
from longfocus import Library
from longfocus.inference import collect, journal, reader, source
from longfocus.inference.source import together
from longfocus.memory import document, tensor_file
from longfocus.memory import library as library_module
from small import TEXT, byte_tokenizer, ids_of, small_model


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


class InterruptedAtLine:
    """Raises KeyboardInterrupt before the n-th line that is run in the given modules."""

    def __init__(self, line: int, modules: list[Any]) -> None:
        self.lines_left, self.files = line, {module.__file__ for module in modules}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.lines_left -= 1
            if self.lines_left == 0:
                raise KeyboardInterrupt
        return self


def is_interrupted_at(line: int, action: Callable[[], object], modules: list[Any]) -> bool:
    before = sys.gettrace()
    sys.settrace(InterruptedAtLine(line, modules))
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def write_sources(folder: Path) -> dict[str, Any]:
    """Everything that can be read, all of the same characters or nearly so."""
    (folder / "lib").mkdir(parents=True)
    for name, text in (("a.txt", SHORT), ("lib/x.py", SHORT[:20]), ("lib/y.py", SHORT[20:])):
        (folder / name).write_bytes(text.encode())
    return {
        "text": SHORT,
        "file": folder / "a.txt",
        "folder": folder / "lib",
        "texts": [SHORT[:7], "", SHORT[7:]],
        "together": together([folder / "lib", folder / "a.txt", "one more"]),
        "token ids": ids_of(SHORT),
    }


KINDS = ["text", "file", "folder", "texts", "together", "token ids"]


@pytest.mark.parametrize("kind", KINDS)
@every_memory
def test_interrupted_at_every_step_nothing_is_read_twice(
    layers: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    with steps(layers) as made:
        read(tmp_path / "whole", write_sources(tmp_path / "a")[kind], layers)
    given = write_sources(tmp_path / "b")[kind]
    with steps(layers) as parts:
        for number in range(1, len(made) + 1):
            with pytest.raises(KeyboardInterrupt):
                read(tmp_path / "parts", given, layers, progress=interrupting(1))
            assert len(parts) == number
            assert len(Library(tmp_path / "parts")) == 0
        assert read(tmp_path / "parts", given, layers).outcome == "read"
        assert parts == made
        assert read(tmp_path / "parts", given, layers).outcome == "unchanged"
        assert parts == made
    assert len(made) >= STEPS[layers]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


MODULES = [reader, journal, collect, source, library_module, document, tensor_file]


# an interruption may come between the opening of a file and the block that closes it
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("stride", [331, pytest.param(7, marks=pytest.mark.long)])
@every_memory
def test_interrupted_at_any_line_a_new_call_goes_on(
    layers: tuple[int, ...], stride: int, tmp_path: Path
) -> None:
    read(tmp_path / "whole", layers=layers)
    expected, line = files(tmp_path / "whole"), 1
    while True:
        folder = tmp_path / str(line)
        with steps(layers) as made:
            was_interrupted = is_interrupted_at(
                line, lambda folder=folder: read(folder, layers=layers), MODULES
            )
            before = Library(folder).names()
            outcome = read(folder, layers=layers).outcome
        assert outcome == ("unchanged" if before else "read")
        # the one step that was made and not yet kept is made again
        assert STEPS[layers] <= len(made) <= STEPS[layers] + 1
        assert files(folder) == expected
        if not was_interrupted:
            break
        line += stride
    assert line > 500


@pytest.mark.long
@pytest.mark.parametrize(("layers", "is_there"), [((0, 1), True), ((1,), False)])
def test_killed_at_any_call_of_the_system_a_new_process_goes_on(
    layers: tuple[int, ...], is_there: bool, tmp_path: Path
) -> None:
    text = SHORT[:40]
    with steps(layers) as once:
        read(tmp_path / "whole", text, layers)
    if is_there:
        read(tmp_path / "before", TEXT[50:60], layers)
    else:
        (tmp_path / "before").mkdir()
    expected, number, is_done = files(tmp_path / "whole"), 0, False
    while not is_done:
        number += 1
        folder, counted = tmp_path / str(number), tmp_path / f"{number} steps"
        shutil.copytree(tmp_path / "before", folder)
        before = [document.hash for document in Library(folder)]

        def work(folder: Path = folder, counted: Path = counted) -> None:
            torch.set_num_threads(1)
            with steps(layers, counted):
                read(folder, text, layers)

        is_done = ends_when_killed_at(number, work)
        found = files(folder)
        is_new = found.get("owl.safetensors") == expected["owl.safetensors"]
        assert is_new or [document.hash for document in Library(folder)] == before
        with steps(layers, counted):
            outcome = read(folder, text, layers).outcome
        assert outcome == ("unchanged" if is_new else "replaced" if is_there else "read")
        assert files(folder) == expected
        # the one step that was made and not yet kept is made again
        assert len(once) <= counted.stat().st_size <= len(once) + 1
        assert not is_done or found == expected
    assert number > 20


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_between_two_starts_begins_anew(change: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = CHANGES[change]()
    for first, second in (({}, changed), (changed, {})):
        folder = tmp_path / ("back" if changed is first else "there")
        with pytest.raises(KeyboardInterrupt):
            read(folder / "parts", progress=interrupting(2), **first)
        assert read(folder / "parts", **second).outcome == "read"
        read(folder / "whole", **second)
        assert files(folder / "parts") == files(folder / "whole")


def test_a_source_that_changes_between_two_starts_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "owl.txt"
    for text in (SHORT, SHORT[::-1]):
        file.write_bytes(text.encode())
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                read(tmp_path / "parts", file, progress=interrupting(1))
    with steps() as made:
        read(tmp_path / "parts", file)
    assert len(made) == STEPS[1,] - 2
    read(tmp_path / "whole", SHORT[::-1])
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@every_memory
def test_a_record_is_used_for_its_own_tokens_only(
    layers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a source that changes between its hash and its reading
    monkeypatch.setattr(collect, "content_hash", lambda source: "equal for all")
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "parts", SHORT, layers, progress=interrupting(2))
    other = SHORT[:20] + SHORT[20:].upper()
    found = read(tmp_path / "parts", other, layers).document
    expected = longfocus.read_document(small_model(layers), byte_tokenizer(), other, "owl")
    assert found.hash == expected.hash


def test_sources_of_several_names_are_continued_each_for_itself(tmp_path: Path) -> None:
    names = ["owl", "eagle", "über/Ça 🦉"]
    for name in names:
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path, SHORT + name, name=name, progress=interrupting(2))
    with steps() as made:
        for name in names:
            assert read(tmp_path, SHORT + name, name=name).outcome == "read"
    # names of one to eight letters add no window, and two steps of each were made
    assert len(made) == len(names) * (STEPS[1,] - 2)
    for name in names:
        expected = longfocus.read_document(small_model(), byte_tokenizer(), SHORT + name, name)
        assert Library(tmp_path).open(name).hash == expected.hash
    assert len(files(tmp_path)) == len(names)
