"""What `longfocus evaluate benefit` asks about, what BM25 finds, and how the runs are shown."""

import json
import re
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from reporting import made
from rich.console import Console

from longfocus.cli.evaluate_tables import show
from longfocus.core.records_task import BADGE, FIELDS, draw_facts
from longfocus.errors import LongFocusError
from longfocus.evaluation.bm25 import Index, chunks_of, words_of
from longfocus.evaluation.hidden_lines import HiddenLine, hidden_in, lines_under
from longfocus.evaluation.questions import ends_with_quote, says_first
from longfocus.evaluation.report.benefit import tables
from longfocus.evaluation.report.charts import charts
from longfocus.evaluation.report.groups import groups
from longfocus.evaluation.report.markdown import markdown
from longfocus.evaluation.report.page import page
from longfocus.evaluation.report.runs import find
from small import byte_tokenizer, ids_of

NAMES = [f"name{letter}" for letter in "abcdefghijkl"]
VALUES = ["oslo", "rome", "lima"]


def test_evaluation_records_have_names_that_share_words_and_all_fields() -> None:
    facts = draw_facts(Random(1), NAMES, VALUES, entities=8, wording="code")
    names = list(dict.fromkeys(fact.name for fact in facts))
    assert len(names) == 8
    assert [fact.field for fact in facts] == list(FIELDS) * 8
    assert len({fact.line for fact in facts}) == 32
    words = [word for name in names for word in name.split("_")]
    # 8 pairs of 4 first and 4 last words
    assert len(set(words)) <= 8
    for fact in facts:
        assert fact.line == f'{fact.name}.{fact.field} = "{fact.answer}"'
        assert fact.question == f'assert {fact.name}.{fact.field} == "'
        assert re.fullmatch(r"\d{5}", fact.answer) or fact.answer in VALUES
        assert (fact.field == BADGE) == fact.answer.isdigit()
    again = draw_facts(Random(1), NAMES, VALUES, entities=8, wording="code")
    assert facts == again != draw_facts(Random(2), NAMES, VALUES, entities=8, wording="code")


def test_evaluation_records_are_worded_as_sentences() -> None:
    (badge, city, *_) = draw_facts(Random(1), NAMES, VALUES, entities=1, wording="sentence")
    assert badge.line == f"The badge number of {badge.name} is {badge.answer}."
    assert badge.name.istitle()
    assert city.question == f"What is the city of {city.name}? The city of {city.name} is"
    assert city.line == f"The city of {city.name} is {city.answer}."


def test_evaluation_records_need_words_for_their_names() -> None:
    with pytest.raises(LongFocusError, match=r"need names of 20 different words\. Got 12"):
        draw_facts(Random(1), NAMES, VALUES, entities=50, wording="code")


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [('oslo"\n', True), ("oslo", False), ('oslo2"', False), ('Oslo"', False), ('"oslo"', False)],
)
def test_evaluation_answers_in_code_are_right_letter_by_letter(answer: str, is_right: bool) -> None:
    assert ends_with_quote("oslo", answer) is is_right


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (" Oslo.", True),
        ("oslo, I think", True),
        ("Rome. Oslo.", False),
        ("Osloer", False),
        ("", False),
    ],
)
def test_evaluation_answers_in_words_are_right_in_the_first_sentence(
    answer: str, is_right: bool
) -> None:
    assert says_first("Oslo", answer) is is_right


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(60)]
    path = tmp_path / "text.py"
    path.write_text("\n".join(" ".join(rng.choice(words, size=4)) for _ in range(300)))
    return path


@pytest.mark.parametrize("window", [63, 128])
def test_evaluation_hides_lines_whole_within_windows_near_their_places(
    window: int, text_file: Path
) -> None:
    tokenizer = byte_tokenizer()
    places = [0.0, 0.3, 0.31, 0.32, 0.7, 0.999]
    hidden = [
        HiddenLine(place, f"HIDDEN NUMBER {n} OF {place} ENDS.") for n, place in enumerate(places)
    ]
    text = lines_under([text_file], tokenizer, seed=1)
    ids = hidden_in(text, hidden[::-1], 4000, window, tokenizer)
    found = tokenizer.decode(ids)
    assert 4000 <= len(ids) < 4000 + 2 * window
    for line in hidden:
        at = found.index("\n" + line.text)
        assert at // window == (at + len(line.text)) // window
        assert line.place * 4000 <= at < line.place * 4000 + 2 * window
    assert found.count("HIDDEN") == 6
    plain = hidden_in(lines_under([text_file], tokenizer, seed=1), [], 4000, window, tokenizer)
    assert len(plain) == 4000


def test_evaluation_refuses_lines_that_cannot_be_hidden(text_file: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    long, short = [HiddenLine(0, "a" * 70)], [HiddenLine(0, "a" * 30)] * 4
    with pytest.raises(LongFocusError, match="does not fit in a window of 64"):
        hidden_in(lines_under([text_file], tokenizer, 1), long, 999, 64, tokenizer)
    with pytest.raises(LongFocusError, match="have 124 tokens, and may be half of the 200"):
        hidden_in(lines_under([text_file], tokenizer, 1), short, 200, 64, tokenizer)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(LongFocusError, match=r"no text in .*empty\.txt"):
        next(lines_under([tmp_path / "empty.txt"], tokenizer, 1))


def test_evaluation_splits_names_of_code_into_words() -> None:
    assert words_of("window_parser windowParser HTTPServer2, Über!") == [
        *["window", "parser"] * 2,
        *["http", "server", "2", "über"],
    ]


def test_evaluation_cuts_chunks_where_lines_begin() -> None:
    ids = ids_of("one line\nanother line\n\nthe third\n" + "x" * 50 + "\nend")
    chunks = chunks_of(ids, 24, byte_tokenizer())
    assert torch.cat(chunks).equal(ids)
    assert max(map(len, chunks)) <= 24
    texts = [byte_tokenizer().decode(own) for own in chunks]
    assert texts[:2] == ["one line\nanother line\n", "\nthe third"]
    assert texts[-1].endswith("\nend")


@pytest.mark.parametrize("seed", range(4))
def test_evaluation_finds_the_chunk_with_a_rare_name(seed: int, text_file: Path) -> None:
    tokenizer = byte_tokenizer()
    hidden = [
        HiddenLine(np.random.default_rng(seed).random(), "The pass key of 'window_parser' is 7.")
    ]
    ids = hidden_in(lines_under([text_file], tokenizer, seed), hidden, 3000, 200, tokenizer)
    index = Index(ids, 100, tokenizer)
    best = index.ranked("pass key of windowParser")[0]
    assert "window_parser" in index.texts[best]
    chosen = index.best("pass key of windowParser", 250)
    assert len(chosen) == 250
    assert "window_parser" in tokenizer.decode(chosen)
    # in the order of the text
    text, lines = tokenizer.decode(ids), tokenizer.decode(chosen).split("\n")
    places = [text.index(line) for line in lines if len(line) > 20]
    assert len(places) > 5
    assert places == sorted(places)
    assert index.nbytes > ids.nbytes


def test_evaluation_without_a_word_of_the_question_takes_the_last_chunks(text_file: Path) -> None:
    tokenizer = byte_tokenizer()
    ids = hidden_in(lines_under([text_file], tokenizer, 1), [], 1000, 200, tokenizer)
    index = Index(ids, 100, tokenizer)
    numbers = list(range(len(index.chunks)))
    assert index.ranked("zzz") == index.ranked("") == index.ranked("?!") == numbers[::-1]
    wordless = Index(ids_of("?!\n" * 40), 50, tokenizer)
    assert wordless.ranked("zzz")[0] == len(wordless.chunks) - 1


def rows_of(methods: dict[str, float], **more: Any) -> list[dict[str, Any]]:
    costs = {"reading_seconds": 1.0, "answering_seconds": 0.5, "memory_bytes": 3 * 2**20}
    found = []
    for seed in (1, 2):
        for method, accuracy in methods.items():
            cell = {"method": method, "task": "needle", "tokens": 4096, "seed": seed, **more}
            found.append(
                {**cell, "accuracy": accuracy, "questions": 20, "prompt_tokens": 240, **costs}
            )
            cell["task"] = "loss"
            loss = {"loss": 2 - accuracy, "perplexity": 7.0, "loss_change": -0.25}
            found.append({**cell, **loss, "prompt_tokens": 256, **costs})
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rows = rows_of({"truncated": 0.25, "memory": 0.5, "bm25": 0.75})
    made(
        tmp_path / "fot", "benefit", rows, model="models/fot", wording="sentence", methods=["bm25"]
    )
    rows = rows_of({"truncated": 0.25, "memory": 0.125})
    note = {"method": "full", "task": "needle", "tokens": 4096, "seed": 1, "note": "beyond <it>"}
    made(tmp_path / "base", "benefit", [*rows, note], model="models/base", wording="sentence")
    rows = rows_of({"truncated": 0.25})
    made(tmp_path / "other", "benefit", rows, model="models/fot", wording="passkey")
    return tmp_path


def test_evaluation_report_has_a_row_for_each_method_of_what_was_asked_alike(runs: Path) -> None:
    (group,) = groups(find([runs]).runs)
    one, other = sorted(tables(group), key=lambda own: -len(own.rows))
    assert one.caption == "wording sentence"
    assert other.caption == "wording passkey"
    assert one.columns[4:] == ["needle 4K", "loss 4K"]
    shown = {(row[1], row[2]): row[3:] for row in one.rows}
    assert set(shown) == {
        *(("fot", method) for method in ("truncated", "memory", "bm25")),
        *(("base", method) for method in ("truncated", "memory", "full")),
    }
    # 30 of 40 questions of two seeds
    needle = "75.0% (60% to 86%), 1.5 s, 3.0 MiB"
    assert shown["fot", "bm25"] == ["256", needle, "1.2500 (-0.2500), 1.5 s, 3.0 MiB"]
    assert shown["base", "full"] == ["-", "beyond <it>", "-"]
    assert one.behind == [
        "needle 4K: base, memory (12.5%) is behind fot, bm25 (75.0%)",
        "needle 4K: fot, memory (50.0%) is behind fot, bm25 (75.0%)",
        "loss 4K: base, memory (1.8750) is behind fot, bm25 (1.2500)",
        "loss 4K: fot, memory (1.5000) is behind fot, bm25 (1.2500)",
    ]
    assert other.verdict == "No memory was measured."
    # methods are no points of one line
    assert charts(group) == []


def test_evaluation_report_shows_the_comparison_in_both_forms(runs: Path) -> None:
    found = groups(find([runs]).runs)
    text, html = markdown(found, []), page(found, [])
    assert "| run | model | method | prompt tokens | needle 4K | loss 4K |" in text
    assert "- needle 4K: fot, memory (50.0%) is behind fot, bm25 (75.0%)." in text
    assert "beyond &lt;it>" in text
    assert "<li>needle 4K: fot, memory (50.0%) is behind fot, bm25 (75.0%)</li>" in html
    assert "beyond &lt;it&gt;" in html
    assert html.count("<h3>Does it help?</h3>") == 2


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"tasks": ["loss"], "tokens": [4096, 8192], "seeds": [1, 2]}},
        {"files": {"text": "other content"}},
        {"words": "others"},
        {"fingerprint": {"tokenizer": "another"}},
        {"focus": {"window": 128}},
    ],
)
def test_evaluation_report_separates_what_was_not_asked_alike(
    other: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        folder = made(tmp_path / name, "benefit", rows_of({"memory": 0.5}), tasks=["loss"])
    (both,) = tables(groups(find([tmp_path]).runs)[0])
    assert len(both.rows) == 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | other))
    one, two = tables(groups(find([tmp_path]).runs)[0])
    assert two.caption.startswith(f"{one.caption} (not asked as above: ")


def test_evaluation_report_compares_methods_on_common_seeds(tmp_path: Path) -> None:
    rows = rows_of({"memory": 0.5, "bm25": 0.25})
    # the best of another method is on a seed that memory was not asked on
    rows += [row | {"seed": 3, "accuracy": 1.0} for row in rows_of({"bm25": 0.25})[:1]]
    made(tmp_path / "one", "benefit", rows)
    (table,) = tables(groups(find([tmp_path]).runs)[0])
    assert not any(told.startswith("needle") for told in table.behind)


def test_evaluation_report_says_what_is_not_trained_and_what_windows_begin_with(
    tmp_path: Path,
) -> None:
    folder = made(tmp_path / "run", "benefit", rows_of({"memory": 0.5, "bm25": 0.25}))
    config = (folder / "config.json").read_text()
    config = config.replace("--model small", "--model small --memory-layers 2 --window 256")
    (folder / "config.json").write_text(
        config.replace('"window_prefix": []', '"window_prefix": "bos"')
    )
    (table,) = tables(groups(find([tmp_path]).runs)[0])
    assert {(row[1], row[2]) for row in table.rows} == {
        ("small, bos at every window", "memory, not trained"),
        ("small, bos at every window", "bm25"),
    }
    assert table.verdict == "Memory is behind nowhere."


def test_evaluation_shows_a_table_for_each_task_and_averages_no_methods() -> None:
    written = StringIO()
    show(Console(file=written, width=200), "benefit", rows_of({"truncated": 0.25, "memory": 0.5}))
    text = written.getvalue()
    assert "benefit: needle" in text
    assert "benefit: loss" in text
    assert "needle, memory, 4K: accuracy 50.0% (mean of 2 seeds)" in text
    assert "needle, truncated, 4K: accuracy 25.0% (mean of 2 seeds)" in text
