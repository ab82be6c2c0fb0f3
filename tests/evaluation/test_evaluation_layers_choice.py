"""`longfocus evaluate layers`: what is proposed, how the command and the report show it, and what they refuse."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting import made

from families import SIZES, random_model
from longfocus.cli.evaluate_layers import proposed, train_words
from longfocus.cli.main import main
from longfocus.evaluation.layers_choice import Proposal, apart, preference, propose, ranking
from longfocus.evaluation.report.charts import LineChart, MapChart, charts
from longfocus.evaluation.report.groups import groups
from longfocus.evaluation.report.page import page
from longfocus.evaluation.report.runs import find
from longfocus.evaluation.results import Results
from longfocus.training.recipe import ContinueRecipe
from longfocus.training.schedule import parse_schedule
from small import SPECIAL, byte_tokenizer

WINDOW, TOKENS = 16, 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random letters."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(4):
        (folder / f"{number}.txt").write_text("".join(rng.choice(list("ABCDEFGH"), size=150)))
    return folder


def rows_of(masses: dict[int, float], others: Sequence[int] = (1, 3, 7, 31), total: int = 0) -> Any:
    """A row in which the layers get so many times as much as another document does."""
    entries = [
        {"layer": layer, "others": number, "positive_mass": times / (times + number)}
        for layer, times in masses.items()
        for number in others
    ]
    return [{"tokens": 64, "seed": 1, "model_layers": total or len(masses), "layers": entries}]


def test_evaluation_proposes_the_layers_with_most_mass_apart_from_each_other() -> None:
    masses = {layer: 1.0 + layer / 100 for layer in range(26)}
    masses |= {0: 9.0, 1: 9.0, 25: 9.0, 12: 5.0, 13: 4.9, 9: 4.8, 8: 4.7, 20: 4.0}
    # not the first two, nor the last; 26 // 6 layers apart
    assert propose(rows_of(masses)).layers == (8, 12, 20)
    assert propose(rows_of(masses), 1).layers == (12,)
    assert [own.layer for own in ranking(rows_of(masses))[:4]] == [0, 1, 25, 12]
    small = dict.fromkeys(range(12), 1.0) | {7: 3.0, 11: 8.0}
    assert propose(rows_of(small)).layers == (7,)
    # where there is no choice
    assert propose(rows_of({0: 3.0, 1: 2.0})).layers == (0,)
    assert apart([4, 5, 6], 3, 10) == [4, 5, 6]
    # of several lengths the longest, of several seeds the mean
    several = rows_of({2: 4.0, 3: 1.0, 4: 1.0}, total=9) + rows_of(
        {2: 1.0, 3: 3.0, 4: 1.0}, total=9
    )
    assert propose(several).layers == (2,)
    several[0]["tokens"] = 8
    assert propose(several).layers == (3,)


@pytest.mark.parametrize(
    ("times", "others", "start", "is_clear"),
    [
        (3.0, (1, 3, 7, 31), 8, True),
        (3.0, (1, 3), 4, True),
        (3.0, (31,), 2, False),
        (1.5, (1, 3, 7, 31), 2, False),
    ],
)
def test_evaluation_proposes_a_d_at_which_the_own_document_is_preferred(
    times: float, others: tuple[int, ...], start: int, is_clear: bool
) -> None:
    found = propose(rows_of(dict.fromkeys(range(4), times), others))
    assert (found.start_d, found.is_clear) == (start, is_clear)
    assert found.measured_d == 1 + others[-1]
    assert preference(1 / 8, 7) == pytest.approx(1)


def test_evaluation_shows_a_command_that_trains(tmp_path: Path) -> None:
    config = {"model": "some model", "settings": {"positions": "none"}, "focus": None}
    results = Results(json=None)
    results.config, results.rows = config, [{"window_tokens": 2048}]
    proposal = Proposal((6, 12), 4, 32, True)
    words = train_words(proposal, config, 2048)
    given = {
        words[at][2:].replace("-", "_"): list(
            itertools.takewhile(lambda word: not word.startswith("--"), words[at + 1 :])
        )
        for at, word in enumerate(words)
        if word.startswith("--")
    }
    assert parse_schedule(given["d"][0]).largest == 64
    recipe = ContinueRecipe(
        model=given["model"][0],
        data=("texts",),
        memory_layers=tuple(map(int, given["memory_layers"])),
        window=int(given["window"][0]),
        positions=given["positions"][0],
        batch_size=int(given["batch_size"][0]),
        max_steps=int(given["max_steps"][0]),
        d=given["d"][0],
    )
    assert (recipe.memory_layers, recipe.window, recipe.d) == (
        (6, 12),
        2048,
        "4 until step 200 then 64",
    )
    *_, honest, last = proposed(proposal, results)
    assert "was not trained to use these layers" in honest
    assert last.startswith("longfocus train continue --model 'some model' --data")
    results.config = {**config, "focus": {"positions": "window_start", "memory_layers": [6, 12]}}
    *_, honest, last = proposed(proposal, results)
    assert "has its memory" in honest
    assert "--positions window_start" in last


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    sizes = {**SIZES, "vocab_size": 256 + len(SPECIAL)}
    random_model("llama", sizes, "sdpa").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def command(data: Path, model: Path, *more: object) -> list[str]:
    words = ["evaluate", "layers", model, "--text", data, "--window", WINDOW, "--tokens", TOKENS]
    words += ["--others", 1, 3, "--windows", 2, "--max-documents", 2, "--device", "cpu", *more]
    return list(map(str, words))


def test_evaluation_command_takes_a_stock_model_and_proposes(
    data: Path, stock_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "results", tmp_path / "layers.png"
    words = command(data, stock_folder, "--output", output, "--plot", plot, "--seeds", 1, 2)
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "Proposed memory layer: 2" in told
    assert "a model that was not trained" in told
    assert f"longfocus train continue --model {stock_folder}" in told
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = json.loads((output / "metrics.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [1, 2]
    # finished cells are not measured again, wherever the picture goes
    words[words.index(str(plot))] = str(tmp_path / "again.png")
    assert main(words) == 0
    assert json.loads((output / "metrics.json").read_text())["rows"] == rows
    assert (tmp_path / "again.png").read_bytes() == plot.read_bytes()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--memory-layers", 1), "memory_layers would have no effect"),
        (("--search", "exact"), "search would have no effect"),
        (("--layers", 1, 7), "--layers 7: this model has attention in the layers 0 to 3"),
        (("--window", 257), "Allowed are 2 to 256 tokens"),
        (("--window", 1), "--window 1 cannot be used"),
        (("--others", 99), "has no 99 pieces"),
        (("--others", 0), "--others 0: must be at least 1"),
        (("--positions", "true"), "has no place for several documents"),
        (("--text", "nowhere"), "nowhere is not there"),
        (("--plot", "nowhere/a.png"), "cannot be written"),
    ],
)
def test_evaluation_command_says_what_it_cannot_use(
    more: tuple[object, ...],
    told: str,
    data: Path,
    stock_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(data, stock_folder, *more)) == 2
    assert told in capsys.readouterr().err


def test_evaluation_command_says_which_extra_a_picture_needs(
    data: Path,
    stock_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(command(data, stock_folder, "--plot", tmp_path / "a.png")) == 2
    assert "longfocus[plot]" in capsys.readouterr().err


def head_rows(heads: int, total: int, *, by_d: bool) -> list[dict[str, Any]]:
    """Rows of two seeds in which layer 3 prefers its own document."""
    (row,) = rows_of({layer: 4.0 if layer == 3 else 1.0 for layer in range(total)}, (1, 3))
    places = [
        {"layer": own["layer"], "head": head, "others": own["others"], "positive_mass": mass}
        for own in row["layers"]
        for head in range(heads)
        for mass in [own["positive_mass"] + head / 1000]
        if by_d or own["others"] == 3
    ]
    row |= {"others": 3, "positive_mass": 0.3, "chance": 0.25, "heads": places}
    if not by_d:
        row["layers"] = [{"layer": 0, "positive_mass": 0.3}]
        for own in places:
            del own["others"]
    return [row, {**row, "seed": 2}]


@pytest.mark.parametrize(("name", "heads", "total"), [("layers", 4, 6), ("layers", 20, 14)])
def test_evaluation_report_draws_layers_and_heads(
    name: str, heads: int, total: int, tmp_path: Path
) -> None:
    rows = head_rows(heads, total, by_d=True)
    made(tmp_path / "run", name, rows, others=[1, 3], choose=1)
    (group,) = groups(find([tmp_path]).runs)
    lines, heat = charts(group)
    assert isinstance(lines, LineChart)
    assert isinstance(heat, MapChart)
    names = [line.label for line in lines.lines]
    few = ["layer 3, proposed", f"mean of the other {total - 1} layers"]
    all_of_them = [f"layer {n}{', proposed' if n == 3 else ''}" for n in range(total)]
    assert names[:-1] == (few if total > 8 else all_of_them)
    chosen = lines.lines[names.index("layer 3, proposed")]
    assert chosen.means == [(2, 4 / 5), (4, 4 / 7)]
    assert "d = 4" in heat.title
    assert (list(heat.x), list(heat.y)) == (list(range(heads)), list(range(total)))
    assert heat.shares[3][0] == pytest.approx(4 / 7)
    assert heat.shares[2][1] == pytest.approx(1 / 4 + 1 / 1000)
    assert heat.brightest == max(own for shares in heat.shares for own in shares if own is not None)
    text = page([group], [])
    assert "\u25b8 3" in text
    # numbers stand in the fields where there is room
    assert ("57%" in text) == (heads < 16)
    assert text.count('role="img"') == 2


def test_evaluation_report_draws_heads_of_distraction(tmp_path: Path) -> None:
    made(tmp_path / "run", "distraction", head_rows(2, 4, by_d=False), others=[3])
    (group,) = groups(find([tmp_path]).runs)
    lines, heat = charts(group)
    assert isinstance(lines, LineChart)
    assert lines.title == "Attention on the own document, r_d"
    assert isinstance(heat, MapChart)
    assert heat.y_name == "layer"
    assert heat.shares[3][1] == pytest.approx(4 / 7 + 1 / 1000)
