"""`longfocus evaluate perplexity` and `distraction`: models with memory and without, what is shown and refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from families import SIZES, random_model
from small import SPECIAL, byte_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"Line {number} of many lines.\n" * 20)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without memory."""
    folder = tmp_path_factory.mktemp("plain")
    random_model("llama", {**SIZES, "vocab_size": 256 + len(SPECIAL)}, "sdpa").save_pretrained(
        folder
    )
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_evaluation_shows_perplexity_and_its_change(run: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    said = run("evaluate", "perplexity", "--data", data, "--tokens", "0", "1K", "--json", file)
    assert said.code == 2
    assert "None of the 3 documents of --data has 1,040 tokens" in said.err
    said = run("evaluate", "perplexity", "--data", data, "--tokens", "0", "64", "--json", file)
    assert said.code == 0, said.err
    assert "change" in said.out
    shortest, longer = json.loads(file.read_text())["rows"]
    assert shortest["tokens"] == 0
    assert longer["perplexity_interval"][0] < longer["perplexity"]
    # so that a command repeats it: also where the documents are
    assert json.loads(file.read_text())["settings"]["data"] == [str(data)]


@pytest.mark.parametrize("kind", ["plain", "transformer_xl"])
def test_evaluation_of_models_without_memory(
    run: Any, kind: str, plain: Path, data: Path, tmp_path: Path
) -> None:
    recipe = plain / "recipe.json"
    recipe.write_text(json.dumps({"method": kind, "window": 32}))
    words = ("evaluate", "perplexity", "--data", data, "--tokens", "0", "64", "--model", plain)
    file = tmp_path / "rows.json"
    said = run(*words, "--json", file, *(("--evaluated", 32) if kind == "plain" else ()))
    assert said.code == 0, said.err
    found = json.loads(file.read_text())
    assert found["focus"] is None
    assert found["fingerprint"].keys() >= {"architecture", "weights", "tokenizer"}
    assert [row["target_tokens"] for row in found["rows"]] == [3 * 4 * 31] * 2
    refused = run(*words, "--search", "exact", "--top-k", "4")
    assert refused.code == 2
    assert "has no memory, so search, top_k would have no effect" in refused.err
    needing = run("evaluate", "distraction", "--data", data, "--model", plain)
    assert "saved without a memory" in needing.err


def test_evaluation_shows_distraction_without_its_heads(
    run: Any, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    words = ("--data", data, "--tokens", "32", "--others", "1", "2", "--json", file)
    said = run("evaluate", "distraction", *words)
    assert said.code == 0, said.err
    assert "positive mass" in " ".join(said.out.split())
    assert "heads" not in said.out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["others"], len(row["heads"])) for row in rows] == [(1, 6), (2, 6)]
