"""The `longfocus` command: finds the chosen command and runs it.

A command is a frozen dataclass (tyro makes its options from the fields and their docstrings) and a
function that takes an instance of it and returns an exit code, None for success. Its module, one
file of this folder, exposes

    Arguments, run                                     when it holds one command
    SUBCOMMANDS = {"dictionary": (Arguments, run)}     when it holds a group, as `train` does

and a line in `COMMANDS` here. Modules are imported only when chosen, and import torch only inside
`run`, so that every `--help` answers at once.

Exit codes: 0 success, 2 something that the user gave cannot be used, 130 interrupted, 141 the
reader of the output went away.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from longfocus import __version__
from longfocus.errors import LongFocusError
from longfocus.evaluation.experiments import EXPERIMENTS


class Command(NamedTuple):
    """A command as `longfocus --help` shows it, and the module that holds it."""

    module: str
    summary: str


class Call(NamedTuple):
    """A command line that has been understood: `run(arguments)` does what it asks."""

    run: Callable[[Any], int | None]
    arguments: Any


COMMANDS = {
    "demo": Command("longfocus.cli.demo", "hide facts in a million tokens, read them, and ask"),
    "read": Command("longfocus.cli.read", "texts into a library of document memories"),
    "ask": Command("longfocus.cli.ask", "an answer from memory, and where the model looked"),
    "chat": Command("longfocus.cli.chat", "talk to a model about documents, in the terminal"),
    "inspect": Command("longfocus.cli.inspect", "what a document, a session or a library holds"),
    "estimate": Command("longfocus.cli.estimate", "bytes and seconds of a memory, before reading"),
    "bench": Command("longfocus.cli.bench", "what memory costs, measured against every peer"),
    **{
        f"evaluate {name}": Command("longfocus.cli.evaluate", summary)
        for name, summary in EXPERIMENTS.items()
    },
    "evaluate speed": Command("longfocus.cli.bench", "the same as `longfocus bench`"),
    "report": Command("longfocus.cli.report", "tables and plots of results, beside the paper's"),
    "train continue": Command(
        "longfocus.cli.train_model", "continued pre-training of any model on your texts"
    ),
    "train instruct": Command("longfocus.cli.train_model", "instruction and chat tuning"),
    "train scratch": Command("longfocus.cli.train_model", "a small model from random weights"),
    "train dictionary": Command("longfocus.cli.train", "train the dictionary lookup model"),
    "train code": Command("longfocus.cli.train", "train the small model of Python source code"),
    "train language": Command(
        "longfocus.cli.train_language", "small language models, one per method to compare"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    try:
        code = _dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except LongFocusError as error:
        print(f"longfocus: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Otherwise the interpreter's last flush of stdout would fail with a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(
            f"longfocus: error: {error}. Check the path, its rights and the room on the disk.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("longfocus: interrupted", file=sys.stderr)
        return 130


def parse(words: Sequence[str]) -> Call:
    """Find the command that the words name, and read its options."""
    name = _command_name(words)
    module = import_module(COMMANDS[name].module)
    options = list(words[len(name.split()) :])
    if COMMANDS[name].module == "longfocus.cli.evaluate":
        options = module.words_of(options)
    last = name.split()[-1]
    kind, run = module.SUBCOMMANDS[last] if " " in name else (module.Arguments, module.run)

    import tyro

    return Call(run, tyro.cli(kind, args=options, prog=f"longfocus {name}"))


def _dispatch(words: list[str]) -> int:
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if words == ["--version"]:
        print(f"longfocus {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in groups and (len(words) == 1 or words[1] in ("-h", "--help", "--list")):
        print(_help(words[0]))
        return 0
    call = parse(words)
    return call.run(call.arguments) or 0


def _command_name(words: Sequence[str]) -> str:
    for name in COMMANDS:
        if list(words[: len(name.split())]) == name.split():
            return name
    from difflib import get_close_matches

    groups = {name.split()[0] for name in COMMANDS if " " in name}
    given = " ".join(words[: 2 if words and words[0] in groups else 1])
    nearest = get_close_matches(given, [*COMMANDS, *groups], n=1)
    advice = f"Did you mean `longfocus {nearest[0]}`? " if nearest else ""
    raise LongFocusError(
        f"{given!r} is not a command. {advice}Known: {', '.join(COMMANDS)}. See `longfocus --help`."
    )


def _help(group: str = "") -> str:
    shown = {name: command for name, command in COMMANDS.items() if group in ("", name.split()[0])}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    return "\n".join(
        [
            f"usage: longfocus {group or 'COMMAND'} ...",
            "",
            "A memory of millions of tokens for any Hugging Face causal language model.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help  this text, or that of a command: longfocus COMMAND --help",
            "  --version   the version of LongFocus",
        ]
    )
