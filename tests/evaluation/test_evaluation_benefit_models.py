"""`longfocus evaluate benefit` with real models: losses and answers are those of one forward pass."""

from copy import deepcopy
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benefiting import BOS, LONGEST, WORDINGS, Row, few_words, found, measured, written
from torch import Tensor
from torch.nn import functional

import longfocus
from families import SIZES, random_model
from longfocus.evaluation import questions
from longfocus.evaluation.budget import budget_of
from longfocus.evaluation.experiments import perplexity
from longfocus.evaluation.methods import Asked, before_questions
from longfocus.evaluation.subject import Subject
from small import SPECIAL, byte_tokenizer, ids_of, small_model


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "words_of_names", few_words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text"))


def tokens_of(folder: Path, own: Row, before: int, size: int) -> Tensor:
    text = (folder / own["document"]).read_text()
    ids = torch.tensor(byte_tokenizer()(text)["input_ids"])
    return ids[own["place"] - before : own["place"] + size]


def losses(subject: Any, data: Path, method: str, tokens: int, **given: Any) -> list[float]:
    return [own["loss"] for own in found(subject, data, method, "loss", tokens, **given)]


def perplexity_losses(subject: Any, data: Path, tokens: int, **given: Any) -> list[float]:
    chosen = {"data": (data,), "tokens": (str(tokens),), "max_documents": 2, "windows": 2, **given}
    settings = perplexity.PerplexitySettings(**chosen)
    return [
        own["loss"] for own in perplexity.records(subject, settings, {"tokens": tokens, "seed": 1})
    ]


@pytest.mark.parametrize(("prefix", "split"), [((), "longllama"), ((BOS,), "when_needed")])
def test_evaluation_of_loss_by_memory_is_that_of_perplexity(
    prefix: tuple[int, ...], split: str, data: Path
) -> None:
    subject = Subject(small_model(split=split), byte_tokenizer(), window_prefix=prefix)
    whole = 16 - len(prefix)
    expected = perplexity_losses(subject, data, 96)
    assert losses(subject, data, "memory", 96, evaluated=whole) == expected
    # the evaluated tokens alone in their window
    expected = perplexity_losses(subject, data, 96, evaluated=6)
    assert losses(subject, data, "memory_only", 96, evaluated=6) == expected
    assert losses(subject, data, "memory", 96, evaluated=6) != expected


@pytest.mark.parametrize("prefix", [(), (BOS,)])
def test_evaluation_of_loss_by_full_context_is_one_forward_of_the_plain_model(
    prefix: tuple[int, ...], data: Path
) -> None:
    plain = random_model("llama", {**SIZES, "vocab_size": 256 + len(SPECIAL)}, "sdpa")
    attached = deepcopy(plain)
    longfocus.attach(attached, longfocus.FocusConfig(memory_layers=(1,), window=16))
    for model in (plain, attached):
        subject = Subject(model, byte_tokenizer(), window_prefix=prefix)
        for own in found(subject, data, "full", "loss", 60, budget=16):
            ids = tokens_of(data, own, 60, own["target_tokens"] + 1)
            with torch.no_grad():
                given = torch.cat([torch.tensor(prefix, dtype=torch.long), ids])
                logits = plain(given[None]).logits[0, len(prefix) + 60 : -1]
            expected = functional.cross_entropy(logits, ids[61:]).item()
            assert own["loss"] == pytest.approx(expected, rel=1e-5)
            assert own["prompt_tokens"] == len(prefix) + len(ids)
        # keys and values of 8 float32 components in each of 2 KV heads of 4 layers
        assert subject.costs.memory_bytes == (len(prefix) + 60) * 2 * 2 * 8 * 4 * 4


def test_evaluation_by_full_context_asks_every_question_alone() -> None:
    plain = random_model("llama", {**SIZES, "vocab_size": 256 + len(SPECIAL)}, "sdpa")
    attached = deepcopy(plain)
    longfocus.attach(attached, longfocus.FocusConfig(memory_layers=(1,), window=32))
    text, tails = ids_of("one text of no meaning at all " * 2), [[40, 41], [50], [60, 61, 62]]
    asked = [Asked((BOS,), tail, "") for tail in tails]
    expected = []
    for tail in tails:
        given = torch.tensor([[BOS, *text.tolist(), *tail]])
        new = plain.generate(given, max_new_tokens=8, do_sample=False, eos_token_id=None)
        expected.append(byte_tokenizer().decode(new[0, given.shape[1] :], skip_special_tokens=True))
    assert len(set(expected)) > 1
    for model in (plain, attached):
        model.generation_config.eos_token_id = None
        subject = Subject(model, byte_tokenizer())
        budget = budget_of(subject, 32, None)
        with before_questions("full", subject, budget, text, (BOS,), 0) as held:
            assert held.answers(asked, 8) == expected
        assert held.prompt_tokens == [1 + len(text) + len(tail) for tail in tails]


def test_evaluation_of_loss_by_truncated_text_is_a_forward_of_the_last_tokens(data: Path) -> None:
    plain = random_model("llama", {**SIZES, "vocab_size": 256 + len(SPECIAL)}, "sdpa")
    attached = deepcopy(plain)
    longfocus.attach(attached, longfocus.FocusConfig(memory_layers=(1,), window=16))
    for model in (plain, attached):
        subject = Subject(model, byte_tokenizer())
        for own in found(subject, data, "truncated", "loss", 60, budget=16, evaluated=6):
            ids = tokens_of(data, own, 10, 6)
            with torch.no_grad():
                logits = plain(ids[None]).logits[0, 10:-1]
            expected = functional.cross_entropy(logits, ids[11:]).item()
            assert own["loss"] == pytest.approx(expected, rel=1e-5)
            assert own["prompt_tokens"] == 16


def test_evaluation_by_memory_of_a_text_that_fits_is_that_of_the_prompt(data: Path) -> None:
    subject = Subject(small_model(window=LONGEST), byte_tokenizer())
    fits = {"evaluated": 100}
    truncated = losses(subject, data, "truncated", 150, **fits)
    assert losses(subject, data, "memory", 150, **fits) == truncated
    assert losses(subject, data, "bm25", 150, **fits) == truncated
    assert losses(subject, data, "full", 150, **fits) == pytest.approx(truncated, rel=1e-5)
    assert losses(subject, data, "memory_only", 150, **fits) != truncated
    texts = [
        [own["answer"] for own in found(subject, data, method, "needle", 100, questions=1)]
        for method in ("truncated", "memory", "bm25", "full")
    ]
    assert texts == [texts[0]] * 4
    assert subject.costs.memory_bytes > 0
    (own,) = found(subject, data, "memory", "needle", 100, questions=1)
    assert subject.costs.memory_bytes == 0 < own["prompt_tokens"]


def test_evaluation_of_a_real_model_has_every_row(data: Path) -> None:
    subject = Subject(small_model(window=LONGEST), byte_tokenizer())
    tasks = {"tasks": ("needle", "records", "loss"), "tokens": ("512",), "entities": 1}
    rows = measured(subject, data, **tasks, **WORDINGS[1], questions=2, windows=1)
    assert len(rows) == 5 * 3
    for (method, task), own in rows.items():
        if method == "full":
            assert own["note"].startswith("beyond")
            continue
        measure = "perplexity" if task == "loss" else "accuracy"
        assert own[measure] is not None
        assert own["prompt_tokens"] <= LONGEST
        assert own["answering_seconds"] > 0
        assert (own["memory_bytes"] > 0) == (method != "truncated")
        assert ("loss_change" in own) == (task == "loss" and method != "truncated")
    # keys and values of 4 float32 components in each of 2 KV heads, and nothing of truncated text
    loss = rows["memory_only", "loss"]
    assert loss["memory_bytes"] == 512 * 2 * 2 * 4 * 4
    changed = rows["memory", "loss"]["loss"] - rows["truncated", "loss"]["loss"]
    assert rows["memory", "loss"]["loss_change"] == pytest.approx(changed)


def test_evaluation_counts_no_cost_of_the_truncated_text_beside_another_method(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr("longfocus.evaluation.costs.time", clock)
    subject = Subject(small_model(), byte_tokenizer())
    methods = ("truncated", "memory_only")
    rows = measured(subject, data, tasks=("loss",), methods=methods, tokens=("64",))
    seconds = [rows[method, "loss"]["answering_seconds"] for method in methods]
    assert seconds[0] == seconds[1] > 0
