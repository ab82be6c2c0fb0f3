"""Installed packages and a standard library in small, for tests of the language models."""

from pathlib import Path

from longfocus.training.language_recipe import LanguageRecipe

RECIPE = LanguageRecipe(
    vocabulary=300,
    recall_documents=4,
    hidden_size=32,
    layers=3,
    heads=1,
    head_dim=32,
    memory_layer=1,
    window=16,
    base_rows=4,
    base_steps=3,
    rows=8,
    windows=4,
    steps=3,
    reach_windows=2,
)


def long_lines(first: int, number: int = 80) -> str:
    """Source code that no other `first` gives."""
    lines = (
        f"    value_of_{i} = compute_the_value_of(first_argument={i}, second_argument={i})\n"
        for i in range(first, first + number)
    )
    return "# licence\n\nimport os\n" + "".join(lines)


def make_packages(folder: Path) -> tuple[Path, list[Path]]:
    """A folder of packages, one of them held out, with copies in both directions; and the library's files."""
    graph, parser = long_lines(1000), long_lines(2000)
    files = {
        "packages/alpha/__init__.py": long_lines(3000),
        "packages/alpha/b.py": long_lines(4000, 200),
        "packages/alpha/vendored.py": graph + long_lines(5000, 9),
        "packages/alpha/compat.py": parser,
        "packages/beta/__init__.py": long_lines(6000),
        "packages/networkx/graph.py": graph,
        "packages/networkx/common.py": long_lines(4100, 60),
        "library/argparse.py": parser,
        "library/email/message.py": long_lines(7000),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "packages", sorted((folder / "library").rglob("*.py"))
