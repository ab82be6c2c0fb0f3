"""Imports point left only, and a third-party package has one home.

    errors <- config, atomic <- core <- memory <- hf <- inference <- training, evaluation <- cli, serving

Read from the source with `ast`, so imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import sys
from collections.abc import Iterator
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


def names(path: Path) -> Iterator[str]:
    """Every imported thing as a dotted name: `from a.b import c` gives a.b.c."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write longfocus. ..."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def public_homes() -> dict[str, str]:
    """Room of each name that `longfocus` itself exports, without importing it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
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


def imported_room(name: str) -> str | None:
    """Room that a name of LongFocus lives in; None for `longfocus` as a whole and its version."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1].startswith("__"):
        return None
    return parts[1] if parts[1] in RANKS else public_homes()[parts[1]]


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_point_left(path: Path) -> None:
    here = room(path)
    assert here in RANKS, f"{here} is no known room"
    for name in names(path):
        if name.split(".")[0] != "longfocus":
            continue
        there = imported_room(name)
        if there is None:
            assert name != "longfocus" or here in ABOVE_HF, (
                f"{here} must not import all of longfocus"
            )
        elif there != here:
            assert RANKS[there] < RANKS[here], f"{here} must not import {name}: imports point left"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_third_party_packages_stay_at_home(path: Path) -> None:
    for package in {name.split(".")[0] for name in names(path)}:
        if package in sys.stdlib_module_names or package == "longfocus":
            continue
        homes = HOMES.get(package, set())
        assert {room(path), short(path)} & homes, (
            f"{package} may be imported in {sorted(homes)} only"
        )


@pytest.mark.parametrize("path", FILES, ids=short)
def test_transformers_internals_stay_in_hf(path: Path) -> None:
    internal = [
        name for name in names(path) if name.startswith("transformers.") and name.count(".") > 1
    ]
    assert room(path) == "hf" or not internal, (
        f"outside hf/ only `from transformers import ...`: {internal}"
    )


@pytest.mark.parametrize("path", FILES, ids=short)
def test_packages_of_extras_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    at_top = [node for node in ast.walk(tree) if node not in inside]
    found = [alias.name for node in at_top if isinstance(node, ast.Import) for alias in node.names]
    found += [node.module for node in at_top if isinstance(node, ast.ImportFrom)]
    extras = {"bm25s", "datasets", "faiss", "peft", "pyarrow", "pypdf", "selectolax"}
    assert not extras & {name.split(".")[0] for name in found}


def test_command_modules_import_nothing_heavy_at_the_top() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            tops = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            tops |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            heavy = {
                top for top in tops if top.split(".")[0] in {"torch", "transformers", "matplotlib"}
            }
            assert not heavy, f"{path.name}: import {heavy} inside the function that needs it"
