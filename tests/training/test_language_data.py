"""Data of the language models: what is held out is in no training text, copies in either direction are found."""

import hashlib
import json
from pathlib import Path

import pytest
from packages import long_lines, make_packages

from longfocus.errors import LongFocusError
from longfocus.training.corpus import Document
from longfocus.training.language_data import check_leaks, prepare_language_data
from longfocus.training.language_recipe import LanguageRecipe
from longfocus.training.stdlib_leak import SourceIndex


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, list[Path]]:
    return make_packages(tmp_path)


def prepared(tmp_path: Path, places: tuple[Path, list[Path]], **changes) -> Path:
    packages, library = places
    recipe = LanguageRecipe(**{"vocabulary": 300, "recall_documents": 4, **changes})
    prepare_language_data(tmp_path / "data", recipe, packages=packages, library=library)
    return tmp_path / "data"


def test_documents_go_where_their_names_say_with_a_header_before_each_file(
    tmp_path: Path, places: tuple[Path, list[Path]]
) -> None:
    data = prepared(tmp_path, places)
    names = {
        folder: {path.stem for path in (data / folder).iterdir()}
        for folder in ("train", "held_out")
    }
    assert names == {"train": {"alpha", "beta"}, "held_out": {"networkx", "email", "argparse"}}
    text = (data / "train" / "alpha.py").read_text()
    assert text.startswith("# alpha/__init__.py\nimport os\n")
    assert "\n\n# alpha/b.py\n" in text
    assert "licence" not in text


def test_no_training_text_holds_a_copy_and_nothing_seen_in_training_is_held_out(
    tmp_path: Path, places: tuple[Path, list[Path]]
) -> None:
    data = prepared(tmp_path, places)
    training = "".join(path.read_text() for path in (data / "train").iterdir())
    # alpha/vendored.py is networkx/graph.py with a few lines more, alpha/compat.py is argparse.py
    assert "vendored.py" not in training
    assert "compat.py" not in training
    # networkx/common.py is made of lines of a longer training file
    assert "common.py" not in (data / "held_out" / "networkx.py").read_text()
    told = json.loads((data / "held_out.json").read_text())
    assert told["left_out_as_copies"] == ["networkx: common.py"]
    assert (told["leak"]["files"], told["leak"]["copied_files"]) == (3, 0)


def test_held_out_documents_are_told_by_hash_and_tokens(
    tmp_path: Path, places: tuple[Path, list[Path]]
) -> None:
    from transformers import AutoTokenizer

    data = prepared(tmp_path, places)
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    for document in json.loads((data / "held_out.json").read_text())["documents"]:
        content = (data / document["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == document["sha256"]
        assert len(content) == document["bytes"]
        assert len(tokenizer(content.decode())["input_ids"]) == document["tokens"]


def test_data_are_made_once_and_those_of_another_recipe_are_refused(
    tmp_path: Path, places: tuple[Path, list[Path]]
) -> None:
    data = prepared(tmp_path, places)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    (places[0] / "alpha" / "new.py").write_text(long_lines(9000))
    prepared(tmp_path, places)
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with pytest.raises(LongFocusError, match="vocabulary: there 300, asked 400"):
        prepared(tmp_path, places, vocabulary=400)


def test_unfinished_data_are_made_again(tmp_path: Path, places: tuple[Path, list[Path]]) -> None:
    whole = prepared(tmp_path, places)
    told = (whole / "held_out.json").read_text()
    (whole / "held_out.json").unlink()
    (whole / "train" / "torn.py").write_text("half")
    prepared(tmp_path, places)
    assert (whole / "held_out.json").read_text() == told
    assert not (whole / "train" / "torn.py").exists()


def test_a_leak_stops_the_preparation(tmp_path: Path) -> None:
    leaked = tmp_path / "x.py"
    leaked.write_text(long_lines(1))
    index = SourceIndex.of_texts([long_lines(1)])
    with pytest.raises(LongFocusError, match="1 of 1 training files are copies"):
        check_leaks([Document("x", (leaked,), 1)], index)
    leaked.write_text(long_lines(5000))
    assert check_leaks([Document("x", (leaked,), 1)], index)["copied_files"] == 0
