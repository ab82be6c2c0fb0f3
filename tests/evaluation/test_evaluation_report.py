"""`longfocus report`: what it finds in folders, what it shows of it, and what it refuses."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting import SHARE, every_kind, made

from longfocus.cli import main as cli
from longfocus.evaluation.report import examples, paper
from longfocus.evaluation.report.charts import LineChart, MapChart, charts
from longfocus.evaluation.report.groups import groups
from longfocus.evaluation.report.markdown import markdown
from longfocus.evaluation.report.page import page
from longfocus.evaluation.report.runs import find
from longfocus.evaluation.shown import cell, columns, length, title

NASTY = "<script>alert(1)</script>|`\"'&$x$_"
ROW = {"tokens": 4096, "seed": 1, "accuracy": 0.75, "accuracy_interval": SHARE}


class Tags(HTMLParser):
    """Counts the tags of a page, and collects its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value is not None]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def written(folder: Path) -> str:
    """The page of a folder."""
    found = find([folder])
    return page(groups(found.runs), found.damaged)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_kind(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def whole_page(all_runs: Path) -> str:
    return written(all_runs)


def test_the_page_plots_every_kind_of_result(whole_page: str) -> None:
    text, found = whole_page, Tags(whole_page)
    # passkey, needle (map and lines), fewshot, retrieval (three), perplexity, distraction
    assert found.names.count("figure") == 9
    assert found.attributes.count(("role", "img")) == 9
    headings = [name for name in found.texts if name.startswith(("Accuracy by", "Perplexity by"))]
    assert len(headings) == 5
    assert "Attention on the own document, r_d" in text
    assert "1/d: no document is preferred" in text
    # names of one drawing are not those of another
    assert len(found.ids) == len(set(found.ids))
    # the paper's figures stand beside ours
    assert "the paper: LongLLaMA-3B" in text
    assert {"73.0", "22.65", "75.9", "about 1/d"} <= set(found.texts)
    # retrieved keys in their context
    assert "Largest kNN scores" in text
    assert found.texts.count(" name2") == 2


def test_the_page_needs_no_network_and_runs_nothing(whole_page: str) -> None:
    found = Tags(whole_page)
    assert not {"script", "img", "link", "iframe"} & set(found.names)
    addresses = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert addresses
    assert all(str(address).startswith("#") for address in addresses)


def test_no_drawing_has_styles_that_the_policy_of_the_page_refuses(whole_page: str) -> None:
    found = Tags(whole_page)
    assert "style" not in {name for name, _ in found.attributes}
    assert found.names.count("style") == 1
    # what they say stands in attributes of SVG
    assert ("fill", "none") in found.attributes
    assert found.attributes.count(("stroke-linejoin", "round")) >= 9


def test_perplexity_among_other_documents_has_a_plot_of_its_own(tmp_path: Path) -> None:
    row = {"seed": 1, "perplexity": 9.0}
    made(tmp_path / "single", "perplexity", [{**row, "tokens": 512}])
    made(tmp_path / "multi", "perplexity", [{**row, "tokens": 4096, "own_tokens": 512}])
    single, multi = charts(groups(find([tmp_path]).runs)[0])
    assert (single.title, multi.title) == (
        "Perplexity by tokens in memory",
        "Perplexity by tokens of other documents",
    )
    assert [
        [point.x for line in own.lines for point in line.points] for own in (single, multi)
    ] == [
        [512],
        [4096],
    ]


def test_every_row_of_every_run_is_shown_with_its_command(all_runs: Path, whole_page: str) -> None:
    texts = set(Tags(whole_page).texts)
    for run in find([all_runs]).runs:
        assert run.command in texts
        for row in run.rows:
            assert {cell(row, name) for name in columns([row])} <= texts


def test_the_same_folders_give_the_same_page(tmp_path: Path) -> None:
    made(tmp_path / "run", "passkey", [ROW])
    assert written(tmp_path) == written(tmp_path)


def test_everything_that_was_read_is_escaped(tmp_path: Path) -> None:
    look = {"layer": 2, "knn_score": 0.5, "focus_score": 0.5, "context": [NASTY, NASTY]}
    look |= {"token": NASTY, "retrieved": NASTY, "retrieved_context": [NASTY, NASTY]}
    row = {**ROW, "knn_score": 0.5, NASTY: NASTY}
    made(tmp_path / "one", "passkey", [row], model=NASTY, text=NASTY, records=[look])
    made(tmp_path / "other", "passkey", [ROW], model=f"_{NASTY}")
    broken = tmp_path / "<i>broken"
    broken.mkdir()
    (broken / "metrics.json").write_text("{}")
    found = Tags(written(tmp_path))
    assert not {"script", "i"} & set(found.names)
    assert NASTY in "".join(found.texts)
    found = find([tmp_path])
    shown = markdown(groups(found.runs), found.damaged)
    assert "<script>alert" not in shown.replace("`", "\0").split("\0")[0]
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[:3]}) == 1


def test_runs_of_one_experiment_share_a_plot_and_are_told_apart(tmp_path: Path) -> None:
    for dtype in ("int8", "bfloat16"):
        memory = {"memory_dtype": dtype, "memory_gib": 2.0}
        made(tmp_path / dtype, "dictionary", [ROW], model="a/b", memory=memory)
    made(tmp_path / "copy", "dictionary", [ROW], model="a/b", memory=memory)
    (group,) = groups(find([tmp_path]).runs)
    (chart,) = charts(group)
    assert isinstance(chart, LineChart)
    assert [line.label for line in chart.lines] == [
        "b, memory dtype bfloat16 (bfloat16)",
        "b, memory dtype bfloat16 (copy)",
        "b, memory dtype int8",
    ]


def test_a_map_has_the_mean_over_seeds_and_holes(tmp_path: Path) -> None:
    rows = [
        {"tokens": 1024, "seed": 1, "depth": 0.25, "accuracy": 1.0, "questions": 2},
        {"tokens": 1024, "seed": 2, "depth": 0.25, "accuracy": 0.0, "questions": 2},
        {"tokens": 2048, "seed": 1, "depth": 0.75, "accuracy": 0.5, "questions": 2},
    ]
    made(tmp_path / "needle", "needle", rows, depths=2)
    (group,) = groups(find([tmp_path]).runs)
    chart, _ = charts(group)
    assert isinstance(chart, MapChart)
    assert chart.x == [1024, 2048]
    assert chart.y == [0.25, 0.75]
    assert chart.shares == [[0.5, None], [None, 0.5]]
    assert group.runs[0].run.status == "unfinished: 3 of 8 cells"


def test_unfinished_runs_are_shown_as_such(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", "passkey", [ROW, {**ROW, "tokens": 8192}])
    (folder / "metrics.json").write_text(json.dumps({"rows": [ROW]}))
    begun = made(tmp_path / "begun", "passkey", [ROW])
    (begun / "metrics.json").unlink()
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"tokens": 81')
    found = find([tmp_path])
    assert [run.status for run in found.runs] == [
        "unfinished: 0 of 1 cells",
        "unfinished: 1 of 2 cells",
    ]
    assert examples.looks(found.runs[1]) == []
    shown = written(tmp_path)
    assert "2 runs not finished" in shown
    assert "unfinished: 1 of 2 cells" in shown


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '{"experiment": "passkey", "settings": {"tokens": 3}}'),
        ("config.json", '{"experiment": "passkey", "settings": {}}'),
        ("config.json", '{"experiment": "x", "settings": {"tokens": [1]}, "focus": "dense"}'),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"rows": [{"tokens": 1, "seed": 1, "accuracy": "all"}]}'),
        ("metrics.json", '{"rows": [{"tokens": 1, "seed": 1, "accuracy_interval": 0.5}]}'),
        ("metrics.json", '{"rows": [{"seed": 1}]}'),
    ],
)
def test_damaged_folders_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    made(tmp_path / "whole", "passkey", [ROW])
    (made(tmp_path / "broken", "passkey", [ROW]) / file).write_text(content)
    path = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path), "-o", str(path)]) == 2
    assert f"{tmp_path / 'broken'} is left out: {file}" in capsys.readouterr().err
    assert "Left out" in path.read_text()
    assert "1 run, 1 row" in path.read_text()


def test_folders_of_models_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    made(tmp_path / "deep" / "run", "passkey", [ROW])
    found = find([tmp_path, tmp_path / "deep", tmp_path / "deep" / "run"])
    assert [run.folder.name for run in found.runs] == ["run"]
    assert not found.damaged


def test_a_small_report_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "run", "dictionary", [{**ROW, "memory_bytes": 2**20, "reading_seconds": 1.25}])
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (
        capsys.readouterr().out
        == """# LongFocus: results

## dictionary

the paper's lookup task: words defined in the memory, asked for.

| run | tokens | seed | accuracy | 95% | memory MiB | reading s |
| --: | --: | --: | --: | --: | --: | --: |
| 1 | 4K | 1 | 75.0% | 10.0% to 90.0% | 1 | 1.2 |

1. small. `longfocus evaluate dictionary --model small --output run`

The paper, dictionary lookup, 37M parameters, k = 32: accuracy % (fot_paper.tex, captions and running text):

| memory | FoT |
| --: | --: |
| 16M | >92 |
"""
    )


def test_files_are_written_or_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "run", "passkey", [ROW])
    path = tmp_path / "report.md"
    assert cli.main(["report", str(tmp_path), "--markdown", str(path)]) == 0
    assert path.read_text().startswith("# LongFocus")
    assert capsys.readouterr().out == ""
    (tmp_path / "empty").mkdir()
    for words, told in (
        ([str(tmp_path), "-o", "/nowhere/report.html"], "cannot be written"),
        ([str(tmp_path / "empty")], "There is no run in"),
        ([str(path)], "is not a folder"),
        ([], "nothing to report of"),
    ):
        assert cli.main(["report", *words]) == 2
        assert told in capsys.readouterr().err


def test_the_page_says_that_plots_are_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "run", "passkey", [ROW])
    for name in [name for name in sys.modules if name.startswith("longfocus.evaluation.report.")]:
        if name.rpartition(".")[2] in ("page", "draw"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert 'pip install "longfocus[plot]"' in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 0


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    made(tmp_path / "runs", "perplexity", [{**ROW, "perplexity": 2.5}])
    code = (
        "import sys; from longfocus.cli.main import main; "
        f"code = main(['report', {str(tmp_path / 'runs')!r}, '-o', {str(tmp_path / 'r.html')!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_papers_figures_are_those_of_its_tables() -> None:
    first, *_ = paper.tables("perplexity")
    assert ["FoT", "64K", 5.32, 4.44, 6.81, 22.65] in first.rows
    assert paper.tables("nothing of the paper") == []
    (points,) = paper.points("passkey", {"text": "landmark"})
    assert points.points == [[102400, 0.945], [262144, 0.73]]
    assert paper.points("passkey", {"text": "plain"}) == []


def test_values_are_shown_with_their_units() -> None:
    row = {"tokens": 0, "own_tokens": 512, "loss": 1.5, "perplexity": 4.481, "layers": [{"a": 1}]}
    assert columns([row, {"tokens": 1, "free": True}]) == [
        "tokens",
        "own_tokens",
        "loss",
        "perplexity",
        "free",
    ]
    assert [cell(row, name) for name in ("tokens", "loss", "perplexity", "no")] == [
        "0",
        "1.5000",
        "4.48",
        "-",
    ]
    assert title("loss_interval") == "95%"
    assert [length(tokens) for tokens in (0, 1000, 3072, 2**21)] == ["0", "1,000", "3K", "2M"]
