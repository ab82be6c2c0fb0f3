"""Reading into a library: nothing is read twice, and whatever stops a reading, the file ends as it would have been."""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import longfocus
from kills import ends_when_killed_at
from longfocus import Library, LongFocusError
from longfocus.inference import collect, journal, reader, source
from longfocus.inference.collect import Collected, read_into
from longfocus.inference.source import together
from longfocus.memory import document, tensor_file
from longfocus.memory import library as library_module
from longfocus.memory.document_file import tensors_of
from small import TEXT, byte_tokenizer, ids_of, small_model

SHORT = TEXT[:75]
STEPS = {(1,): 4, (0, 1): 6}
"""Calls of the model for SHORT: five windows of 16 bytes and a rest, two at a time where they are independent."""
every_memory = pytest.mark.parametrize("layers", list(STEPS), ids=str)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows at a time where they are independent, and several pieces of text."""
    monkeypatch.setattr(reader, "BATCH_TOKENS", 32)
    monkeypatch.setattr(source, "PIECE", 40)


def read(
    folder: Path, given: Any = SHORT, layers: tuple[int, ...] = (1,), **named: Any
) -> Collected:
    """Read into the library in a folder, as a new process would."""
    options = {"model": small_model(layers), "tokenizer": byte_tokenizer(), "name": "owl"}
    return read_into(Library(folder), source=given, **{**options, "metadata": {}, **named})


def files(folder: Path) -> dict[str, bytes]:
    """All that is in the folder, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def steps(layers: tuple[int, ...] = (1,), counted: Path | None = None) -> Iterator[list[int]]:
    """The windows of every call of the model; a file that is given grows by a byte for each."""
    rows: list[int] = []
    kind = type(small_model(layers))
    read_window = kind.read_window

    def counting(self: Any, memory: Any, input_ids: torch.Tensor) -> None:
        rows.append(len(input_ids))
        if counted is not None:
            with counted.open("ab") as file:
                file.write(b".")
        read_window(self, memory, input_ids)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, "read_window", counting)
        yield rows


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


@every_memory
def test_what_is_unchanged_is_not_read(layers: tuple[int, ...], tmp_path: Path) -> None:
    with steps(layers) as made:
        first = read(tmp_path, layers=layers)
        assert (first.outcome, len(made)) == ("read", STEPS[layers])
        before = files(tmp_path)
        again = read(tmp_path, layers=layers)
        assert (again.outcome, len(made)) == ("unchanged", STEPS[layers])
    assert again.document.hash == first.document.hash
    assert files(tmp_path) == before
    assert list(before) == ["owl.safetensors"]


def test_what_is_read_is_what_a_session_reads(tmp_path: Path) -> None:
    found = read(tmp_path, metadata={"language": "en"}, window_prefix=(1, 5)).document
    expected = longfocus.read_document(
        small_model(),
        byte_tokenizer(),
        SHORT,
        "owl",
        metadata={"language": "en"},
        window_prefix=[1, 5],
    )
    assert found.hash == expected.hash
    assert found.path == tmp_path / "owl.safetensors"


def other_weights() -> dict[str, Any]:
    model = small_model.__wrapped__()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    return {"model": model}


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: {"given": SHORT[:-1]},
    "weights": other_weights,
    "tokenizer": lambda: {"tokenizer": byte_tokenizer(bos=True)},
    "memory layers": lambda: {"layers": (0, 1)},
    "window": lambda: {"model": small_model(window=17)},
    "positions": lambda: {"model": small_model(positions="none")},
    "type of the memory": lambda: {"model": small_model(memory_dtype="bfloat16")},
    "search while reading": lambda: {"model": small_model((0, 1), search="exact", top_k=3)},
    "window_prefix": lambda: {"window_prefix": (1,)},
    "memory_dtype": lambda: {"memory_dtype": "int8"},
    "metadata": lambda: {"metadata": {"language": "en"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_read_again_and_back(change: str, tmp_path: Path) -> None:
    made = CHANGES[change]()
    assert read(tmp_path / "changed", **made).outcome == "read"
    assert read(tmp_path / "plain").outcome == "read"
    both = {name: files(tmp_path / name) for name in ("plain", "changed")}
    assert both["plain"] != both["changed"]
    assert read(tmp_path / "plain", **made).outcome == "read again"
    assert files(tmp_path / "plain") == both["changed"]
    assert read(tmp_path / "plain", **made).outcome == "unchanged"
    # metadata that are not given are those that were given
    back: dict[str, Any] = {"metadata": {}} if change == "metadata" else {}
    if back:
        assert read(tmp_path / "plain").outcome == "unchanged"
    assert read(tmp_path / "plain", **back).outcome == "read again"
    assert files(tmp_path / "plain") == both["plain"]


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


def interrupting(step: int) -> Callable[[int, bool], None]:
    """A progress report that is interrupted at a step, counted from 1."""
    reports = iter(range(1, step + 1))

    def report(done: int, is_all: bool) -> None:
        if next(reports) == step:
            raise KeyboardInterrupt

    return report


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


@pytest.mark.parametrize(
    ("layers", "is_there"), [((0, 1), True), pytest.param((1,), False, marks=pytest.mark.long)]
)
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
        assert outcome == ("unchanged" if is_new else "read again" if is_there else "read")
        assert files(folder) == expected
        # the one step that was made and not yet kept is made again
        assert len(once) <= counted.stat().st_size <= len(once) + 1
        assert not is_done or found == expected
    assert number > 20


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


def test_an_error_in_the_middle_leaves_the_library_and_the_old_document(tmp_path: Path) -> None:
    model = small_model.__wrapped__()
    with torch.no_grad():
        model.model.embed_tokens.weight[int(ids_of("~"))] = torch.nan
    old = read(tmp_path, model=model).document
    before = files(tmp_path)
    for _ in range(2):
        with pytest.raises(LongFocusError, match="NaN or infinite, so they cannot enter"):
            read(tmp_path, TEXT[:70] + "~" + TEXT[70:], model=model)
        assert visible(files(tmp_path)) == before
        assert Library(tmp_path).open("owl").hash == old.hash
    assert read(tmp_path, model=model).outcome == "unchanged"
    # nothing is left of what could not be read
    assert files(tmp_path) == before


def test_a_full_disk_leaves_the_old_document_and_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(tmp_path / "whole")
    read(tmp_path / "parts", TEXT[50:60])
    before = files(tmp_path / "parts")
    with monkeypatch.context() as patched, steps() as made:
        patched.setattr(tensor_file, "write_all", full)
        with pytest.raises(
            LongFocusError, match=r"owl\.safetensors cannot be written: the disk is"
        ):
            read(tmp_path / "parts")
        assert visible(files(tmp_path / "parts")) == before
        patched.undo()
    with steps() as made:
        assert read(tmp_path / "parts").outcome == "read again"
    assert made == []
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def full(*given: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["header", "token_ids"])
def test_a_document_that_is_damaged_is_read_again(part: str, tmp_path: Path) -> None:
    given = SHORT if part == "header" else ids_of(SHORT)
    kept = read(tmp_path, given).document
    assert kept.path is not None
    expected = files(tmp_path)
    data = bytearray(kept.path.read_bytes())
    # token ids lie behind keys and values of four bytes, and end the file
    data[100 if part == "header" else -1] ^= 1
    kept.path.write_bytes(data)
    assert read(tmp_path, given).outcome == "read again"
    assert files(tmp_path) == expected


@pytest.mark.parametrize("name", ["x" * 250, "", "a\udcffb"], ids=ascii)
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    given = tmp_path / (name or " ")
    with steps() as made, pytest.raises(LongFocusError, match="Choose another"):
        read(tmp_path / "library", given if name else SHORT, name=name or " ")
    assert made == []
    assert files(tmp_path / "library") == {}


def test_metadata_stay_until_others_are_given(tmp_path: Path) -> None:
    first = read(tmp_path, metadata={"language": "en"}).document
    assert read(tmp_path, metadata=None).outcome == "unchanged"
    again = read(tmp_path, SHORT + "!", metadata=None)
    assert (again.outcome, again.document.metadata) == ("read again", first.metadata)
    assert read(tmp_path, SHORT + "!").document.metadata == {}


def test_a_document_of_a_newer_format_is_refused_and_stays(tmp_path: Path) -> None:
    made = read(tmp_path).document
    assert made.path is not None
    newer = {**made.description.to_dict(), "version": 99}
    tensor_file.write_tensors(made.path, tensors_of(made.content, made.layers), newer)
    before = files(tmp_path)
    with steps() as done, pytest.raises(LongFocusError, match=r"version 99.*newer LongFocus"):
        read(tmp_path, SHORT + "!")
    assert (done, files(tmp_path)) == ([], before)


def test_an_iterator_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match="Give a list of texts, or a Path"):
        read(tmp_path, iter([SHORT]))
    assert files(tmp_path) == {}


def test_what_another_process_is_reading_is_refused(tmp_path: Path) -> None:
    def meanwhile(done: int, is_all: bool) -> None:
        if not is_all:
            with pytest.raises(LongFocusError, match="Wait for it, or stop it"):
                read(tmp_path)
            # another source does not wait for this one
            assert read(tmp_path, name="eagle").outcome in ("read", "unchanged")

    assert read(tmp_path, progress=meanwhile).outcome == "read"
    assert sorted(files(tmp_path)) == ["eagle.safetensors", "owl.safetensors"]


def test_in_other_types_the_file_holds_what_converting_the_document_gives(tmp_path: Path) -> None:
    plain = read(tmp_path / "plain").document
    for dtype in ("bfloat16", "float16", "int8"):
        folder = tmp_path / dtype
        with pytest.raises(KeyboardInterrupt):
            read(folder, memory_dtype=dtype, progress=interrupting(2))
        found = read(folder, memory_dtype=dtype)
        assert (found.outcome, found.document.hash) == ("read", plain.to(dtype).hash)
        assert read(folder, memory_dtype=dtype).outcome == "unchanged"


def visible(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if not name.startswith(".")}
