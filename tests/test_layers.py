"""Imports point left only, and a third-party package has one home.

    errors <- config, atomic <- core <- memory <- hf <- inference <- training, evaluation <- cli, serving

Read from the source with `ast`, so imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "longfocus"

RANKS = {
    "errors": 0,
    "config": 1,
    "atomic": 1,
    "core": 2,
    "memory": 3,
    "hf": 4,
    "inference": 5,
    "training": 6,
    "evaluation": 6,
    "cli": 7,
    "serving": 7,
    "__main__": 8,
}

ABOVE_HF = {"inference", "training", "evaluation", "cli", "serving"}

# Package: the places that may import it, a room or a file. A package that is missing here has no
# home yet: give it one, and a line in pyproject.toml.
HOMES = {
    "torch": {"core", "memory", "hf", *ABOVE_HF},
    "jaxtyping": {"core", "memory", "hf", *ABOVE_HF},
    "numpy": {"memory", "hf", *ABOVE_HF},
    "safetensors": {"memory", "hf", "training"},
    "transformers": {"hf", *ABOVE_HF},
    "tokenizers": {"hf", "training"},
    "rich": {"cli", "inference/progress.py", "training/progress.py"},
    "tyro": {"cli"},
    "matplotlib": {
        "evaluation/plot.py",
        "evaluation/report/draw.py",
        "evaluation/speed/plot.py",
    },
    # what `pip install 'longfocus[bench]'` brings, and what is installed beside it (docs/speed.md)
    "faiss": {
        "memory/faiss_index.py",
        "evaluation/speed/peers/faiss_flat.py",
        "evaluation/speed/peers/memorizing.py",
    },
    # what `pip install 'longfocus[lm-eval]'` brings
    "lm_eval": {"evaluation/lm_eval.py"},
    "tqdm": {"evaluation/lm_eval.py"},
    # what `pip install 'longfocus[read]'` brings
    "pypdf": {"inference/texts/pdf_text.py"},
    "selectolax": {"inference/texts/html_text.py"},
    # what `pip install 'longfocus[bm25]'` brings
    "bm25s": {"evaluation/bm25.py"},
    # what `pip install 'longfocus[train]'` brings
    "accelerate": {"training/run.py"},
    "datasets": {"evaluation/labelled.py", "training/tables.py"},
    "peft": {"training/adapters.py"},
    "pyarrow": {"training/tables.py", "training/token_file.py"},
    # what torch and transformers bring
    "filelock": {"evaluation/results.py", "training/tokenised.py"},
    "jinja2": {"inference/prompts.py", "training/chat.py"},
}

FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def names(path: Path) -> tuple[str, ...]:
    """Every imported thing as a dotted name: `from a.b import c` gives a.b.c."""
    return tuple(_imported(ast.walk(tree_of(path))))


def names_at_top(path: Path) -> tuple[str, ...]:
    """What is imported outside of functions."""
    nodes: list[ast.AST] = [tree_of(path)]
    for node in nodes:
        if not isinstance(node, ast.FunctionDef):
            nodes += ast.iter_child_nodes(node)
    return tuple(_imported(nodes))


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write longfocus. ..."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def public_homes() -> dict[str, str]:
    """Room of each name that `longfocus` itself exports, without importing it."""
    tree = tree_of(PACKAGE / "__init__.py")
    return {
        alias.name: node.module.split(".")[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("longfocus.")
        for alias in node.names
    }


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(here: str) -> Iterator[tuple[str, str]]:
    """Of every file of a room."""
    for path in FILES:
        if room(path) == here:
            yield from ((short(path), name) for name in names(path))


every_room = pytest.mark.parametrize("here", sorted({room(path) for path in FILES}))


def imported_room(name: str) -> str | None:
    """Room that a name of LongFocus lives in; None for `longfocus` as a whole and its version."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1].startswith("__"):
        return None
    return parts[1] if parts[1] in RANKS else public_homes()[parts[1]]


@every_room
def test_imports_point_left(here: str) -> None:
    assert here in RANKS, f"{here} is no known room"
    for path, name in imports_of(here):
        if name.split(".")[0] != "longfocus":
            continue
        there = imported_room(name)
        if there is None:
            assert name != "longfocus" or here in ABOVE_HF, (
                f"{path} must not import all of longfocus"
            )
        elif there != here:
            assert RANKS[there] < RANKS[here], f"{path} must not import {name}: imports point left"


@every_room
def test_third_party_packages_stay_at_home(here: str) -> None:
    for path, name in imports_of(here):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package == "longfocus":
            continue
        homes = HOMES.get(package, set())
        assert {here, path} & homes, f"{path}: {package} may be imported in {sorted(homes)} only"


@every_room
def test_transformers_internals_stay_in_hf(here: str) -> None:
    internal = [
        (path, name)
        for path, name in imports_of(here)
        if name.startswith("transformers.") and name.count(".") > 1
    ]
    assert here == "hf" or not internal, (
        f"outside hf/ only `from transformers import ...`: {internal}"
    )


@every_room
def test_packages_of_extras_are_imported_inside_functions(here: str) -> None:
    extras = {"bm25s", "datasets", "faiss", "peft", "pyarrow", "pypdf", "selectolax"}
    for path in FILES:
        if room(path) == here:
            found = {name.split(".")[0] for name in names_at_top(path)}
            assert not extras & found, short(path)


def test_command_modules_import_nothing_heavy_at_the_top() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        for node in tree_of(path).body:
            tops = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            tops |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            heavy = {
                top for top in tops if top.split(".")[0] in {"torch", "transformers", "matplotlib"}
            }
            assert not heavy, f"{path.name}: import {heavy} inside the function that needs it"
