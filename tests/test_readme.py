"""Every Python example of the README and of docs/ runs, and every command there is understood.

The blocks of a page run in order in one namespace, in an empty folder. A block that cannot run here
(it needs a download) is fenced as ```python no-run and is compiled only.
"""

import re
import shlex
from pathlib import Path

import pytest

from longfocus.cli import main as cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SHELLS = {"bash", "sh", "shell", "console"}


def blocks(page: Path, languages: set[str]) -> list[tuple[int, str, str]]:
    """(line, note, code) of each fenced block in one of the languages."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 1, found[2].strip(), found[3])
        for found in FENCE.finditer(text)
        if found[1] in languages
    ]


def commands(code: str) -> list[list[str]]:
    """The words of each line that calls `longfocus`, up to what a shell does with its output."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words[:1] == ["longfocus"]:
            end = next(
                (i for i, word in enumerate(words) if word[0:1] in "|>&;" and word), len(words)
            )
            found.append(words[1:end])
    return found


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, note, code in blocks(page, {"python"}):
        # Empty lines in front, so that a traceback shows the line of the page.
        compiled = compile("\n" * line + code, str(page), "exec")
        if "no-run" not in note:
            exec(compiled, namespace)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_are_understood(page: Path) -> None:
    for _line, _note, code in blocks(page, SHELLS):
        for words in commands(code):
            if not {"--help", "--version"} & set(words):
                cli.parse(words)


def test_commands_are_found_in_shell_blocks() -> None:
    code = "$ longfocus demo --tokens 4K \\\n  --json out.json | tail -1  # the last\nmake demo\n"
    assert commands(code) == [["demo", "--tokens", "4K", "--json", "out.json"]]
