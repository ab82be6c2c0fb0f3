"""Commands run in this process, on a tiny model in a folder."""

import io
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from longfocus.cli.main import main

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
    from small import byte_tokenizer, small_model

    folder = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _loaded() -> dict[str, Any]:
    """Loading that loads each model and tokenizer once: whoever uses one leaves it as it was."""
    import longfocus

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

    import longfocus

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
