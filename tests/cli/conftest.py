"""Commands run in this process, on a tiny model in a folder."""

import io
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from talking_to import MODEL

import longfocus
from longfocus import Library
from longfocus.cli.main import main
from small import TEXT, byte_tokenizer, small_model

CACHED_LOADING = ("from_pretrained", "tokenizer")


class Said(NamedTuple):
    """What a command line has printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has memory, and its tokenizer, which has a chat template."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _loaded() -> dict[str, Any]:
    """Loading that loads each model and tokenizer once: whoever uses one leaves it as it was."""
    return {name: cache(getattr(longfocus, name)) for name in CACHED_LOADING}


@pytest.fixture
def run(
    model: Path,
    _loaded: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """Run a command line, with the tiny model where another is not named, `typed` as its standard input."""
    from transformers import logging

    for name, loading in _loaded.items():
        monkeypatch.setattr(longfocus, name, loading)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    verbosity = logging.get_verbosity()

    def command(*words: object, typed: str | bytes = "") -> Said:
        given = [str(word) for word in words]
        if given[0] != "inspect" and "--model" not in given:
            given += ["--model", str(model)]
        data = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        try:
            code = main(given)
        except SystemExit as stopped:
            # tyro's, for options that it does not understand
            code = int(stopped.code or 0)
        return Said(code, *capsys.readouterr())

    yield command
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def _no_network(*given: object) -> None:
    raise AssertionError(f"a connection to {given[1:]}")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a file, and a folder of two files."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "owl.txt").write_bytes(TEXT.encode())
    (tmp_path / "lib" / "x.py").write_text("x = 1\n")
    (tmp_path / "lib" / "y.py").write_text("y = 2\n")
    return tmp_path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Not there yet: looking into it makes it."""
    made = Library.__new__(Library)
    made.folder = tmp_path / "books"
    return made


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A file with the memory of a text."""
    path = tmp_path / "owl.safetensors"
    tokenizer = byte_tokenizer(chat=True)
    longfocus.read_document(small_model(), tokenizer, TEXT, "owl").save(path)
    return path


@pytest.fixture
def talk(run: Any, told: Path) -> Any:
    """Say some lines to the model that has the document in memory."""

    def say(*lines: str, words: tuple[object, ...] = ()) -> Any:
        typed = "".join(f"{line}\n" for line in lines)
        return run("chat", "--documents", told, *MODEL, *words, typed=typed)

    return say
