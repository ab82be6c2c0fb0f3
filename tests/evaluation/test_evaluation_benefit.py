"""`longfocus evaluate benefit`: every method gets the same questions, within one budget."""

import re
from pathlib import Path

import pytest
from benefiting import (
    BOS,
    LONGEST,
    WINDOW,
    WORDINGS,
    Forgetful,
    Oracle,
    PlainModel,
    few_words,
    found,
    measured,
    settings_of,
    written,
)

from longfocus.errors import LongFocusError
from longfocus.evaluation import questions
from longfocus.evaluation.experiments import benefit
from longfocus.evaluation.report.runs import find
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.subject import Subject
from small import byte_tokenizer, small_model


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "words_of_names", few_words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("wording", WORDINGS)
def test_evaluation_of_who_knows_what_was_read_finds_all_by_memory(
    wording: dict[str, str], data: Path
) -> None:
    rows = measured(Oracle(byte_tokenizer()), data, **wording)
    for task in ("needle", "records"):
        for method in ("memory", "memory_only"):
            assert rows[method, task]["accuracy"] == 1
            assert rows[method, task]["questions"] == 4
            assert rows[method, task]["reading_seconds"] >= 0
        assert rows["truncated", task]["accuracy"] < 1
        assert rows["truncated", task]["memory_bytes"] == 0
        assert "beyond the model's 384 positions" in rows["full", task]["note"]
        assert rows["bm25", task]["memory_bytes"] > 1024
    # nothing else has words of a needle's name
    assert rows["bm25", "needle"]["accuracy"] == 1


@pytest.mark.parametrize("wording", WORDINGS)
def test_evaluation_of_who_remembers_nothing_is_that_of_chance(
    wording: dict[str, str], data: Path
) -> None:
    methods = ("truncated", "memory", "memory_only")
    rows = measured(Forgetful(byte_tokenizer()), data, **wording, methods=methods)
    for task in ("needle", "records"):
        assert rows["memory_only", task]["accuracy"] == 0
        assert rows["memory", task]["accuracy"] == rows["truncated", task]["accuracy"]


@pytest.mark.parametrize("wording", WORDINGS)
def test_evaluation_of_a_plain_model_that_knows_its_prompt_finds_all_by_full_context(
    wording: dict[str, str], data: Path
) -> None:
    subject = Subject(PlainModel(), byte_tokenizer())
    rows = measured(subject, data, **wording, budget=WINDOW)
    for task in ("needle", "records"):
        assert rows["full", task]["accuracy"] == 1
        assert rows["full", task]["prompt_tokens"] > 1024
        assert rows["truncated", task]["accuracy"] < 1
        assert rows["memory", task]["note"] == "the model has no memory"
    assert rows["bm25", "needle"]["accuracy"] == 1
    (beyond,) = found(subject, data, "full", "needle", 2990, budget=WINDOW)
    assert beyond == {"note": "beyond the model's 3,000 positions"}


@pytest.mark.parametrize("task", ["needle", "records"])
def test_evaluation_asks_all_methods_and_kinds_of_models_the_same(task: str, data: Path) -> None:
    listening = Oracle(byte_tokenizer())
    plain = Subject(PlainModel(), byte_tokenizer())
    asked = [
        [
            (own["question"], own["expected"])
            for own in found(subject, data, method, task, 1024, **given)
        ]
        for subject, methods, given in (
            (listening, ("truncated", "memory", "memory_only", "bm25"), {}),
            (plain, ("truncated", "full", "bm25"), {"budget": WINDOW}),
        )
        for method in methods
    ]
    assert len(asked[0]) == 4
    assert all(own == asked[0] for own in asked)
    # no line is cut
    assert all(byte_tokenizer().decode(row).startswith("\n") for row in listening.asked)
    # a prompt ends with the same question, whatever stands before it
    ends = [bytes(row[-20:]) for row in listening.asked]
    assert ends == ends[:4] * 4


@pytest.mark.parametrize("prefix", [(), (BOS,)])
@pytest.mark.parametrize("own_bos", [False, True])
def test_evaluation_never_exceeds_the_budget_and_begins_every_prompt_with_the_prefix(
    prefix: tuple[int, ...], own_bos: bool, data: Path
) -> None:
    subject = Oracle(byte_tokenizer(bos=own_bos), prefix)
    methods = ("truncated", "memory", "memory_only", "bm25")
    for task in ("needle", "records"):
        for method in methods:
            found(subject, data, method, task, 1024, budget=300)
    assert len(subject.asked) == 2 * 4 * 4
    # the chunks of bm25 leave no room
    assert max(subject.whole) == 300
    for row in subject.asked:
        assert row.count(BOS) == int(bool(prefix) or own_bos)
        assert (row[0] == BOS) == (bool(prefix) or own_bos)


def test_evaluation_has_the_text_within_what_is_said_in_a_chat_template(data: Path) -> None:
    subject = Oracle(byte_tokenizer(chat=True))
    records = found(subject, data, "bm25", "needle", 1024)
    assert all(own["is_right"] for own in records)
    for row in subject.asked:
        text = byte_tokenizer().decode(row)
        assert re.fullmatch(
            r"<s>\[user\] .{99,}\nWhat is the secret .* is\n\[answer\] ", text, re.DOTALL
        )
    # the beginning of a line is none to be said
    found(subject, data, "bm25", "needle", 1024, wording="passkey")
    assert "[answer]" not in byte_tokenizer().decode(subject.asked[-1])


def test_evaluation_refuses_what_cannot_be_compared(data: Path, tmp_path: Path) -> None:
    subject = Subject(small_model(window=LONGEST), byte_tokenizer())
    for given, told in (
        ({"budget": LONGEST + 1}, "more than this model's window of 256"),
        ({"budget": 20}, "the budget is 20"),
        ({"questions": 30}, "may be half of the"),
    ):
        with pytest.raises(LongFocusError, match=told):
            found(subject, data, "memory", "needle", 1024, **given)
    with pytest.raises(LongFocusError, match="does not fit in a prompt of 256"):
        found(subject, data, "memory", "loss", 1024, evaluated=LONGEST + 1)
    with pytest.raises(LongFocusError, match="of --text has 90,128 tokens"):
        found(subject, data, "memory", "loss", 90_000)
    (tmp_path / "recipe.json").write_text('{"method": "transformer_xl", "window": 16}')
    plain = Subject(PlainModel(), byte_tokenizer(), folder=tmp_path)
    with pytest.raises(LongFocusError, match="A Transformer-XL"):
        found(plain, data, "truncated", "needle", 1024)
    for given, told in (
        ({"tasks": ("loss",), "text": ()}, "--text is missing"),
        ({"text": (tmp_path / "nothing",)}, "is not there"),
        ({"questions": 0}, "--questions must be at least 1"),
        ({"max_documents": 0}, "--max-documents must be"),
    ):
        with pytest.raises(LongFocusError, match=told):
            settings_of(data, **given)
    with pytest.raises(LongFocusError, match="nothing to measure"):
        list(benefit.cells(settings_of(data, methods=())))


def test_evaluation_tells_folders_of_runs_what_is_missing(data: Path, tmp_path: Path) -> None:
    settings = settings_of(data, tasks=("needle",), methods=("full", "memory"))
    results = Results(tmp_path / "run")
    about = {"experiment": "benefit", "settings": settings.to_dict()}
    results.open(about, list(benefit.cells(settings)))
    run(benefit.EXPERIMENT, settings, Oracle(byte_tokenizer()), results)
    (own,) = find([tmp_path]).runs
    assert own.waiting == 0
    assert "positions" in own.rows[0]["note"]
