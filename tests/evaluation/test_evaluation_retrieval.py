"""What is retrieved: the keys and scores are those that the model's own trace has, and equal names are recognised."""

from pathlib import Path
from typing import Any

import pytest
import torch

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiments import experiment, retrieval
from longfocus.evaluation.results import Results
from longfocus.evaluation.retrieved import Text, looks, word_at
from longfocus.evaluation.runner import run
from longfocus.evaluation.subject import Subject
from longfocus.hf.trace import Trace
from small import byte_tokenizer, ids_of, small_model

TEXT = "".join(f"def name_{number}(self):\n    return other_{number % 3}\n" for number in range(40))
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text(TEXT)
    return path


def subject() -> Subject:
    return Subject(small_model(LAYERS, window=32, last_context_length=32), byte_tokenizer())


def test_every_token_and_layer_has_the_key_with_most_attention() -> None:
    examined = subject()
    behind = "def name_1(self):\n    return"
    with examined.session() as session:
        examined.read(session, TEXT[:300])
        found = list(looks(examined, session, behind, len(behind) - 1))
        trace = Trace(top=1, last=None)
        with torch.no_grad():
            ids = ids_of(behind[:-1])[None]
            session.model(ids, past_key_values=session.cache(), focus_trace=trace)
    assert [record["layer"] for record in found] == list(LAYERS) * (len(behind) - 1)
    assert [record["token"] for record in found[::2]] == list(behind[:-1])
    assert [record["next"] for record in found[::2]] == list(behind[1:])
    expected = [looked for query in trace.queries for looked in query]
    for record, looked in zip(found, expected, strict=True):
        assert record["retrieved"] == TEXT[looked.position]
        assert record["knn_score"] == pytest.approx(looked.knn_score, abs=1e-5)
        assert record["focus_score"] == pytest.approx(looked.focus_score, abs=1e-5)
        before, after = record["retrieved_context"]
        assert before + record["retrieved"] + after in TEXT
        is_next = TEXT[looked.position + 1] == record["next"]
        assert record["is_next_token"] is is_next
        assert record["is_same_token"] is (record["token"] == record["retrieved"])
        share = TEXT[:300].count(record["token"]) / 300
        assert record["same_token_by_chance"] == pytest.approx(share)


def test_queries_of_several_windows_are_all_asked(text_file: Path) -> None:
    settings = {"tokens": ("512",), "queries": 70, "file": text_file}
    chosen, results = experiment("retrieval"), Results()
    run(chosen, chosen.settings(**settings), subject(), results)
    (row,) = results.rows
    assert row["queries"] == 70
    assert 0 < row["focus_score"] <= 1
    assert 0 < row["knn_score"] <= 1
    assert 0 <= row["same_token"] <= 1
    assert row["same_token_interval"][0] <= row["same_token"] <= row["same_token_interval"][1]
    assert 0 < row["same_token_by_chance"] < 0.2


def test_rows_count_what_is_the_same() -> None:
    record = {"layer": 1, "knn_score": 0.5, "focus_score": 0.25, "same_token_by_chance": 0.1}
    flags = [(True, True, True, False), (True, True, False, False), (False, False, False, True)]
    names = ("is_same_token", "is_in_word", "is_same_word", "is_next_token")
    found = [
        {**record, "query": query, **dict(zip(names, own, strict=True))}
        for query, own in enumerate(flags)
    ]
    row = retrieval.row(found)
    assert row["same_token"] == pytest.approx(2 / 3)
    # what several layers find of a query makes the interval no narrower
    of_layers = retrieval.row([{**own, "layer": layer} for own in found for layer in LAYERS])
    assert of_layers == row
    assert row["same_word"] == 0.5
    assert row["next_token"] == pytest.approx(1 / 3)
    assert row["knn_score"] == 0.5


@pytest.mark.parametrize(
    ("span", "word"),
    [((4, 8), "name_1"), ((3, 8), "name_1"), ((10, 11), None), ((0, 3), "def"), ((12, 13), None)],
)
def test_tokens_belong_to_words(span: tuple[int, int], word: str | None) -> None:
    assert word_at("def name_1( x)", span) == word


def test_seeds_read_other_parts_of_a_text(text_file: Path) -> None:
    parts = [list(Text(subject(), text_file, seed, 200).parts(100)) for seed in (1, 2)]
    assert parts[0] != parts[1]
    assert all("".join(own) in "\n" + TEXT for own in parts)


@pytest.mark.parametrize("spare", [0, 100])
def test_a_text_that_is_long_enough_is_so_from_every_place(spare: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\n".join("x" * (number * 7 % 40) for number in range(100)))
    # a part, and what looks back, may each be almost a line longer than asked for
    tokens = sum(number * 7 % 40 + 1 for number in range(100)) - 2 * 40 - spare
    for seed in range(40):
        text = Text(subject(), tmp_path / "file", seed, tokens)
        assert list(text.parts(tokens - 300))
        assert text.behind(300 - 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"queries": 0}, "at least 1"),
        ({"file": Path("/nowhere.txt")}, "is not a file"),
        ({"tokens": ("64K",)}, "is too short"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    text_file: Path, settings: dict[str, Any], told: str
) -> None:
    chosen = experiment("retrieval")
    with pytest.raises(LongFocusError, match=told):
        run(chosen, chosen.settings(**{"file": text_file, **settings}), subject(), Results())
