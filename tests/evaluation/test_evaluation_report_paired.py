"""The report's differences of losses: on the same windows only, of runs and of lengths."""

import json
from pathlib import Path
from typing import Any

from reporting import made

from longfocus.evaluation.intervals import mean_over_groups
from longfocus.evaluation.report.groups import Group, groups
from longfocus.evaluation.report.markdown import markdown
from longfocus.evaluation.report.page import page
from longfocus.evaluation.report.paired import PairedTable, tables
from longfocus.evaluation.report.runs import find

PLACES = [("one.py", 0), ("one.py", 512), ("two.py", 0), ("three.py", 256)]
LOSSES = {
    "better": {0: (2.0, 2.1, 3.0, 1.0), 512: (1.9, 1.7, 2.6, 1.1), 1024: (1.5, 1.6, 2.6, 0.7)},
    "worse": {0: (2.1, 2.1, 3.2, 1.1), 512: (2.0, 2.0, 3.1, 1.0), 1024: (2.0, 2.2, 3.0, 0.9)},
}


def run(folder: Path, model: str, losses: dict[int, tuple[float, ...]], places: list[Any]) -> None:
    rows = [
        {"tokens": tokens, "seed": 1, "loss": sum(own) / len(own), "perplexity": 9.0}
        for tokens, own in losses.items()
    ]
    records = [
        {"tokens": tokens, "seed": 1, "document": document, "place": place, "loss": loss}
        for tokens, own in losses.items()
        for (document, place), loss in zip(places, own, strict=True)
    ]
    made(folder, "perplexity", rows, records=records, model=model)


def group_of(folder: Path) -> Group:
    (found,) = groups(find([folder]).runs)
    return found


def compared(tmp_path: Path, **places: list[Any]) -> list[PairedTable]:
    for name, losses in LOSSES.items():
        run(tmp_path / name, name, losses, places.get(name, PLACES))
    return tables(group_of(tmp_path))


def shown(one: tuple[float, ...], other: tuple[float, ...]) -> str:
    found = mean_over_groups(
        [a - b for (_, _), a, b in sorted(zip(PLACES, one, other, strict=True))],
        [document for document, _ in sorted(PLACES)],
        "change",
    )
    low, high = found["change_interval"]
    return f"{found['change']:+.4f} ({low:+.4f} to {high:+.4f})"


def test_lengths_are_compared_with_the_shortest_memory_and_runs_with_the_best(
    tmp_path: Path,
) -> None:
    lengths, runs = compared(tmp_path)
    assert lengths.columns == ["run", "", "1K"]
    assert [row[1:] for row in lengths.rows] == [
        [name, shown(LOSSES[name][1024], LOSSES[name][512])] for name in ("better", "worse")
    ]
    assert runs.columns == ["run", "", "0", "512", "1K"]
    assert "(better)" in runs.caption
    assert [row[1:] for row in runs.rows] == [
        ["worse", *(shown(LOSSES["worse"][t], LOSSES["better"][t]) for t in (0, 512, 1024))]
    ]


def test_other_windows_are_not_compared(tmp_path: Path) -> None:
    (lengths,) = compared(tmp_path, worse=[*PLACES[:3], ("four.py", 0)])
    assert len(lengths.rows) == 2


def test_records_of_an_unfinished_cell_do_not_count(tmp_path: Path) -> None:
    run(tmp_path / "better", "better", LOSSES["better"], PLACES)
    rest = {tokens: LOSSES["worse"][tokens] for tokens in (0, 512)}
    run(tmp_path / "worse", "worse", rest, PLACES)
    with (tmp_path / "worse" / "records.jsonl").open("a") as file:
        file.write('{"tokens": 1024, "seed": 1, "document": "one.py", "place": 0, "loss": 1.0}\n')
    (lengths,) = tables(group_of(tmp_path))
    # with nothing to compare it has no row
    assert [row[1] for row in lengths.rows] == ["better"]


def test_a_model_without_memory_does_not_lengthen_the_names_of_the_others(tmp_path: Path) -> None:
    compared(tmp_path)
    config = json.loads((tmp_path / "worse" / "config.json").read_text())
    (tmp_path / "worse" / "config.json").write_text(json.dumps(config | {"focus": None}))
    assert [own.label for own in group_of(tmp_path).runs] == ["better", "worse"]


def test_methods_of_one_run_are_compared_apart(tmp_path: Path) -> None:
    kinds = {"memory": LOSSES["better"], "bm25": LOSSES["worse"]}
    cells = [
        ({"method": method, "task": "loss", "tokens": tokens, "seed": 1}, own)
        for method, losses in kinds.items()
        for tokens, own in losses.items()
        if tokens
    ]
    rows = [{**cell, "loss": sum(own) / len(own)} for cell, own in cells]
    records = [
        {**cell, "document": document, "place": place, "loss": loss}
        for cell, own in cells
        for (document, place), loss in zip(PLACES, own, strict=True)
    ]
    made(tmp_path / "one", "benefit", rows, records=records, tasks=["loss"])
    lengths, runs = tables(group_of(tmp_path))
    assert [row[1:] for row in lengths.rows] == [
        ["small, memory", shown(LOSSES["better"][1024], LOSSES["better"][512])],
        ["small, bm25", shown(LOSSES["worse"][1024], LOSSES["worse"][512])],
    ]
    assert "(small, memory)" in runs.caption
    assert [row[1] for row in runs.rows] == ["small, bm25"]


def test_other_documents_in_memory_are_compared_with_none_and_by_themselves(tmp_path: Path) -> None:
    compared(tmp_path)
    for folder in tmp_path.iterdir():
        metrics = json.loads((folder / "metrics.json").read_text())
        rows = [{**row, "own_tokens": 512} for row in metrics["rows"]]
        multi = tmp_path / f"multi_{folder.name}"
        folder.rename(multi)
        (multi / "metrics.json").write_text(json.dumps(metrics | {"rows": rows}))
    run(tmp_path / "single", "single", LOSSES["better"], PLACES)
    among, alone, _ = tables(group_of(tmp_path))
    assert among.caption.endswith("less that with no other documents in memory")
    assert among.columns == ["run", "", "512", "1K"]
    assert [row[2] for row in among.rows] == [
        shown(LOSSES[name][512], LOSSES[name][0]) for name in ("better", "worse")
    ]
    assert alone.columns == ["run", "", "1K"]


def test_other_experiments_have_no_such_tables(tmp_path: Path) -> None:
    made(tmp_path / "one", "dictionary", [{"tokens": 1024, "seed": 1, "accuracy": 1.0}])
    assert tables(group_of(tmp_path)) == []


def test_page_and_markdown_show_them(tmp_path: Path) -> None:
    for table in compared(tmp_path):
        told = table.rows[-1][2]
        assert told in page([group_of(tmp_path)], [])
        assert told in markdown([group_of(tmp_path)], [])
