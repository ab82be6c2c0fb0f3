"""The command line: what it lists exists, help needs no torch, errors are one line and a code."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest

import longfocus
from longfocus.cli import main as cli

COMMANDS = sorted(cli.COMMANDS)


@dataclass(frozen=True)
class Arguments:
    """A command for tests."""

    number: int = 1
    """Any number."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Arguments], int | None]], None]:
    """Make `longfocus probe` run a function."""

    def register(run: Callable[[Arguments], int | None]) -> None:
        module = ModuleType("longfocus_probe")
        module.Arguments, module.run = Arguments, run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command(module.__name__, "for tests"))

    return register


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_needs_no_torch() -> None:
    done = run_python(
        "import sys; from longfocus.cli.main import main\n"
        "assert (main(['--help']), 'torch' in sys.modules) == (0, False)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS)


def test_help_of_a_command_needs_no_torch() -> None:
    done = run_python(
        "import sys; from longfocus.cli.main import COMMANDS, main\n"
        "for name in sorted(COMMANDS):\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit as end: assert end.code == 0, name\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in COMMANDS if f"longfocus {name}" not in done.stdout] == []


def test_module_form_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longfocus", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"longfocus {longfocus.__version__}\n"


def test_no_command_and_a_group_alone_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "demo" in capsys.readouterr().out
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert "train code" in shown
    assert "demo" not in shown


@pytest.mark.parametrize(
    ("words", "nearest"),
    [("demmo", "demo"), ("train dictonary", "train dictionary"), ("trian", "train")],
)
def test_unknown_command_names_the_nearest(
    words: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert f"Did you mean `longfocus {nearest}`?" in capsys.readouterr().err


def test_options_reach_the_command_and_its_code_is_returned(command: Callable) -> None:
    command(lambda arguments: arguments.number)
    assert cli.main(["probe", "--number", "7"]) == 7
    assert cli.main(["probe", "--number", "0"]) == 0


def test_none_is_success(command: Callable) -> None:
    command(lambda arguments: None)
    assert cli.main(["probe"]) == 0


def test_bad_option_is_code_2(command: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda arguments: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", "--number", "many"])
    assert stopped.value.code == 2
    assert "--number" in capsys.readouterr().err


def test_user_error_is_one_message_without_traceback(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Arguments) -> None:
        raise longfocus.LongFocusError("the text is empty. Give one with words in it.")

    command(fail)
    assert cli.main(["probe"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "longfocus: error: the text is empty. Give one with words in it.\n"
    assert captured.out == ""


def test_interrupt_is_code_130_without_traceback(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(arguments: Arguments) -> None:
        raise KeyboardInterrupt

    command(stop)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "longfocus: interrupted\n"


def test_a_reader_that_went_away_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "longfocus", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 141


def test_our_own_errors_keep_their_traceback(command: Callable) -> None:
    def break_down(arguments: Arguments) -> None:
        raise ZeroDivisionError

    command(break_down)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])
