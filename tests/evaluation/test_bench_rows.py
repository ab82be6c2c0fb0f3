"""Everything is measured at tiny sizes: the keys of the JSON, masses, cells that say why they are empty."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benching import SHAPE, TINY, measured, named

from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import bench as benches
from longfocus.evaluation.speed import machine, models, storage, suite
from longfocus.evaluation.speed.peers import faiss_flat, memorizing
from longfocus.evaluation.speed.plot import lines, plot
from longfocus.evaluation.speed.rows import Report, Row
from longfocus.evaluation.speed.settings import Settings, quick


@pytest.fixture(scope="module")
def report() -> Report:
    names = suite.measurements(TINY)
    # its processes take seconds to start
    return measured(TINY, *(name for name in names if name != "resident"))


@pytest.mark.long
def test_every_ratio_has_its_name(report: Report) -> None:
    wanted = {
        "reading_64_vs_published_sdpa",
        "reading_256_vs_published_eager",
        "reading_64_vs_full_attention",
        "reading_gqa_64_vs_published_sdpa",
        "reading_exponent_one_layer",
        "decode_5k_vs_empty",
        "decode_r8_64_vs_full_attention",
        "kernel_5k_vs_faiss_flat",
        "kernel_5k_retained_mass",
        "kernel_5k_dense_of_bandwidth",
        "window_5k_vs_faiss_flat",
        "estimate_reading_64_two_layers",
        "estimate_decoding_64_one_layer",
    }
    assert wanted <= set(report.ratios)
    assert {*report.finished, "resident"} == set(suite.measurements(TINY))
    assert all(ratio > 0 for key, ratio in report.ratios.items() if "exponent" not in key)


def test_the_names_of_the_real_bench_are_those_of_the_issue() -> None:
    names = set(suite.measurements(Settings()))
    assert {"reading_64k", "reading_1m", "decode_1m", "kernel_1m", "window_1m"} <= names
    assert {"reading_one_layer", "reading_trained", "estimate"} <= names


@pytest.mark.long
def test_rows_say_everything_about_themselves(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["ratios"] == report.ratios
    assert not found["interrupted"]
    for row in found["rows"]:
        assert row["what"]
        assert row["threads"] == 1
        assert row["versions"]["torch"]
        assert row["hardware"]["cores"] >= 1
        assert {"model", "tokens", "ours_seconds", "peer", "peer_seconds", "ratio"} <= set(row)
        assert {"retained_mass", "repetitions"} <= set(row)


@pytest.mark.long
def test_what_leaves_keys_out_says_what_it_keeps(report: Report) -> None:
    for row in report.rows:
        if row.ours == "clustered" and row.what in ("kernel", "window", "decoding"):
            assert 0.9 < row.retained_mass <= 1.0
        if row.ours == "dense" and row.key and not row.key.endswith("mass"):
            assert row.retained_mass is None
    assert 0 < named(report, "window_5k_vs_faiss_flat").peer_retained_mass <= 1.0
    assert 0.9 < report.ratios["kernel_5k_retained_mass"] <= 1.0


@pytest.mark.long
def test_ratios_follow_from_the_times_beside_them(report: Report) -> None:
    row = named(report, "reading_64_vs_published_sdpa")
    assert row.ratio == row.peer_seconds / row.ours_seconds
    row = named(report, "decode_5k_vs_empty")
    assert row.ratio == row.ours_seconds / row.peer_seconds


@pytest.mark.long
def test_an_estimate_of_bytes_is_exact(report: Report) -> None:
    found = [row for row in report.rows if row.what == "estimate of bytes"]
    assert [row.ratio for row in found] == [1.0, 1.0]


def test_a_model_that_is_not_there_is_named_with_its_command(tmp_path: Path) -> None:
    absent = measured(replace(TINY, trained_two=str(tmp_path / "none")), "reading_trained")
    (row,) = absent.rows
    assert "longfocus train dictionary --memory-layers 2 3" in row.note
    assert row.note.startswith("not measured")
    assert not absent.ratios


def test_reading_of_trained_keys_says_what_it_keeps_and_how_it_grows(tmp_path: Path) -> None:
    folder = str(tmp_path / "two")
    models.random_model(replace(SHAPE, vocabulary=64)).save_pretrained(folder)
    found = measured(replace(TINY, trained_two=folder), "reading_trained")
    rows = [row for row in found.rows if row.what == "reading"]
    assert [row.tokens for row in rows] == list(TINY.trained_lengths)
    for row in rows:
        assert (row.ours, row.peer) == ("clustered", "dense")
        assert 0 < row.retained_mass_least <= row.retained_mass <= 1.0
        assert row.ratio == row.peer_seconds / row.ours_seconds
    assert "reading_exponent_trained" in found.ratios


def test_peers_over_the_limit_are_not_measured_and_their_ratios_absent() -> None:
    found = measured(replace(TINY, limit_seconds=1e-6), "reading_64", "reading_256")
    assert not found.ratios
    assert all(row.peer_seconds is None for row in found.rows)
    assert all("not measured: one repetition takes more than" in row.note for row in found.rows)


def test_a_cache_that_does_not_fit_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda: 1)
    found = measured(TINY, "decode_r8_64")
    assert "decode_r8_64_vs_full_attention" not in found.ratios
    assert "decode_r8_64_vs_published_sdpa" in found.ratios
    assert any("GiB of memory" in row.note for row in found.rows)


@pytest.mark.long
def test_packages_that_are_missing_leave_their_rows_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_flat, "is_there", lambda: False)
    monkeypatch.setattr(memorizing, "is_there", lambda: False)
    found = measured(TINY, "kernel", "knn_memory", "build")
    notes = " ".join(row.note for row in found.rows)
    assert "pip install faiss-cpu" in notes
    assert memorizing.HOW in notes
    assert not [key for key in found.ratios if "faiss" in key]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_graph_index_finds_most_of_what_matters_where_it_is_installed() -> None:
    found = measured(TINY, "knn_memory")
    if not memorizing.is_there():
        assert any(memorizing.HOW in row.note for row in found.rows)
        return
    assert named(found, "window_512_vs_knn_memory").peer_retained_mass > 0.5
    assert "adding_512_vs_knn_memory" in found.ratios


def test_a_name_measures_itself_alone_and_a_beginning_all_that_begin_so() -> None:
    every = suite.measurements(TINY)
    assert benches.chosen(every, ["reading_64"]) == ["reading_64"]
    assert benches.chosen(every, ["decode"]) == ["decode_5k", "decode_r8_64", "decode_r8_256"]
    assert benches.chosen(every, []) == list(every)
    with pytest.raises(LongFocusError, match="reading_64, reading_256"):
        benches.chosen(every, ["nothing"])


@pytest.mark.long
def test_resident_memory_is_that_of_a_process_of_its_own() -> None:
    found = measured(TINY, "resident")
    for peer in ("published_sdpa", "full_attention"):
        row = named(found, f"resident_64_vs_{peer}")
        # of Python, torch and transformers at least
        assert min(row.ours_bytes, row.peer_bytes) > 100 * 2**20
        assert row.ratio == row.peer_bytes / row.ours_bytes


@pytest.mark.long
def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.sys, "executable", "false")
    with pytest.raises(LongFocusError, match="memory of dense ended early"):
        measured(TINY, "resident")


def test_a_run_without_time_left_says_so() -> None:
    found = measured(replace(TINY, budget_seconds=0.0), "bytes")
    assert list(found.left_out) == ["bytes"]
    assert not found.rows
    assert not found.finished


def test_a_quick_run_is_a_real_one_with_less() -> None:
    fast = quick(Settings())
    assert fast.budget_seconds < 180
    assert fast.trained_tokens == Settings().trained_tokens
    names = list(suite.measurements(fast))
    assert set(names) <= set(suite.measurements(Settings()))
    assert names == [
        "kernel_1m",
        "window_1m",
        "decode_1m",
        "bytes",
        "reading_one_layer",
        "reading_4k",
        "reading_16k",
        "reading_64k",
    ]
    assert sum(one.minutes for one in suite.measurements(fast).values()) < 8


def test_long_readings_of_a_quick_run_have_one_peer() -> None:
    fast = replace(TINY, peers=("published_sdpa", "full_attention"), most_peers_tokens=64)
    found = measured(fast, "reading_64", "reading_256")
    assert list(found.ratios) == [
        "reading_64_vs_published_sdpa",
        "reading_64_vs_full_attention",
        "reading_256_vs_published_sdpa",
    ]


def test_an_interrupted_run_keeps_what_was_measured_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    made = benches.Bench(TINY, benches.new_report(TINY))
    every = dict(suite.measurements(TINY))

    def interrupt(bench: benches.Bench) -> None:
        raise KeyboardInterrupt

    every["estimate"] = benches.Measurement(interrupt, 1.0)
    benches.measure(made, every, ["bytes", "estimate", "reading_64"], output=path)
    assert made.report.is_interrupted
    assert made.report.finished == ["bytes"]
    assert json.loads(path.read_text())["interrupted"]

    again = benches.Bench(TINY, benches.new_report(TINY))
    again.report.take_over(path)
    assert again.report.finished == ["bytes"]
    assert [asdict(row) for row in again.report.rows] == [asdict(row) for row in made.report.rows]
    benches.measure(again, suite.measurements(TINY), ["bytes", "reading_64"], output=path)
    assert again.report.finished == ["bytes", "reading_64"]
    assert not json.loads(path.read_text())["interrupted"]


@pytest.mark.parametrize("damage", ["not json", "{}", '{"rows": 3}'])
def test_a_file_that_is_no_bench_is_refused(damage: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(damage)
    with pytest.raises(LongFocusError, match="--resume"):
        benches.new_report(TINY).take_over(tmp_path / "bench.json")


def test_figures_of_other_options_are_not_mixed_in(tmp_path: Path) -> None:
    benches.new_report(TINY).write(tmp_path / "bench.json")
    with pytest.raises(LongFocusError, match="other options"):
        benches.new_report(replace(TINY, threads=2)).take_over(tmp_path / "bench.json")


@pytest.mark.long
def test_the_plot_shows_what_was_measured_only(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "bench.png"
    plot(report.rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = [
        Row(what="reading", model="m", tokens=64, ours="dense", ours_seconds=2.0, peer="a_b"),
        Row(what="reading", model="m", tokens=128, ours="dense", ours_seconds=8.0),
        Row(what="decoding", model="m", tokens=128, ours="dense", ours_seconds=8.0),
    ]
    found = lines(rows, "reading", lambda tokens, seconds: tokens / seconds)
    assert found == [("m: ours, dense", {64: 32.0, 128: 16.0})]
    plot([], path)
