"""`longfocus evaluate perplexity`: memory counts exactly, documents are chosen by rule, intervals are fair."""

import json
import os
from itertools import pairwise
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from examining import Blind, Knowing, Session
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from families import SIZES, random_model
from longfocus.errors import LongFocusError
from longfocus.evaluation import intervals
from longfocus.evaluation.contexts import empty_context, mean_loss
from longfocus.evaluation.experiments import experiment
from longfocus.evaluation.experiments.perplexity import PerplexitySettings, records
from longfocus.evaluation.given_files import hashes
from longfocus.evaluation.held_out import HeldOut, evenly
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.subject import Subject
from longfocus.training.transformer_xl import TransformerXL
from small import SPECIAL, byte_tokenizer, small_model

VOCABULARY = 256 + len(SPECIAL)
PERIOD = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five documents, each an order of the same letters, again and again; one more is short."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    letters = [chr(code) for code in range(33, 33 + PERIOD)]
    for number in range(5):
        again = "".join(rng.permutation(letters)) * (8 + number)
        (folder / f"document_{number}.txt").write_text(again)
    (folder / "short.txt").write_text("short")
    (folder / "picture.txt").write_bytes(b"\0\1\2")
    return folder


def measured(subject: Any, data: Path, **settings: Any) -> list[dict[str, Any]]:
    results, chosen = Results(), experiment("perplexity")
    run(chosen, chosen.settings(data=(data,), **settings), subject, results)
    return results.rows


def found(subject: Any, folder: Path, memory: int, **settings: Any) -> list[dict[str, Any]]:
    """The records of the cell with so many tokens in memory."""
    chosen = PerplexitySettings(**{"data": (folder,), **settings})
    return [dict(own) for own in records(subject, chosen, {"tokens": memory, "seed": 1})]


class NextTokenModel:
    """Predicts what followed a token in what a session has read."""

    device = torch.device("cpu")
    focus = SimpleNamespace(config=SimpleNamespace(window=64))

    def __call__(self, input_ids: Tensor, past_key_values: Session, **options: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        known = dict(pair for ids in past_key_values.ids for pair in pairwise(ids.tolist()))
        for place, token in enumerate(input_ids[0].tolist()):
            if token in known:
                logits[0, place, known[token]] = 100
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("kind", [Knowing, Blind])
def test_evaluation_of_who_knows_the_memory_has_no_loss_and_of_the_blind_that_of_a_guess(
    kind: type[Knowing], data: Path
) -> None:
    subject = kind(byte_tokenizer())
    subject.model, subject.window = NextTokenModel(), 64
    short, long = measured(subject, data, tokens=("0", "128"), windows=3)
    for row in (short, long):
        assert row["documents"] == 5
        assert row["windows"] == 15
        assert row["target_tokens"] == 15 * 63
        assert "own_tokens" not in row
        assert row["perplexity"] == pytest.approx(exp(row["loss"]))
    assert short["perplexity"] == pytest.approx(VOCABULARY)
    assert "loss_change" not in short
    if kind is Knowing:
        assert long["perplexity"] == pytest.approx(1)
        assert long["loss_change_interval"] == pytest.approx([-log(VOCABULARY)] * 2)
    else:
        assert long["perplexity"] == pytest.approx(VOCABULARY)
        assert long["loss_change"] == 0


def test_evaluation_at_the_shortest_length_costs_a_longer_one_nothing(data: Path) -> None:
    subject = Knowing(byte_tokenizer())
    subject.model, subject.window = NextTokenModel(), 64
    settings = PerplexitySettings(data=(data,), tokens=("0", "128"), windows=1)
    assert len(list(records(subject, settings, {"tokens": 128, "seed": 1}))) == 5
    # one session for each document
    assert len(subject.costs.retained) == 5


def test_evaluation_says_that_others_are_too_few_before_anything_is_measured(data: Path) -> None:
    settings = PerplexitySettings(
        data=(data,), tokens=("0", "64K"), documents="multi", own="128", windows=1
    )
    with pytest.raises(LongFocusError, match="have no 65,536 tokens"):
        next(records(Knowing(byte_tokenizer()), settings, {"tokens": 0, "seed": 1}))


def test_evaluation_beyond_a_table_of_positions_is_refused(data: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64
    )
    subject = Subject(AutoModelForCausalLM.from_config(config).eval(), byte_tokenizer())
    assert found(subject, data, 32, tokens=("32",), evaluated=32, windows=1)
    with pytest.raises(LongFocusError, match="a table of 64 positions"):
        found(subject, data, 33, tokens=("33",), evaluated=32, windows=1)


@pytest.mark.parametrize("layers", [(1,), (0, 2)])
@pytest.mark.parametrize("split", ["longllama", "when_needed"])
def test_evaluation_with_memory_is_one_long_forward(
    layers: tuple[int, ...], split: str, data: Path
) -> None:
    model = small_model(layers, split=split)
    for own in found(Subject(model, byte_tokenizer()), data, 48, tokens=("48", "64"), windows=2):
        text, place = (data / own["document"]).read_text(), own["place"]
        ids = torch.tensor(byte_tokenizer()(text)["input_ids"])[place - 48 : place + 16]
        with torch.no_grad():
            logits = model(ids[None], last_context_length=16).logits[0, 48:-1]
        expected = functional.cross_entropy(logits, ids[49:])
        assert own["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_evaluation_with_the_shortest_beside_every_length(data: Path) -> None:
    subject = Subject(small_model(), byte_tokenizer())
    shortest = [own["loss"] for own in found(subject, data, 0, tokens=("0", "32"))]
    longer = found(subject, data, 32, tokens=("0", "32"))
    assert [own["loss_at_shortest"] for own in longer] == shortest
    assert all(own["loss"] != own["loss_at_shortest"] for own in longer)


def test_evaluation_with_no_other_documents_is_that_of_a_single_one(data: Path) -> None:
    subject = Subject(small_model(), byte_tokenizer())
    single = found(subject, data, 32, tokens=("32",))
    alone = found(subject, data, 0, tokens=("0", "64"), documents="multi", own="32")
    assert alone == [{**own, "own_tokens": 32} for own in single]
    # the last of the others is cut
    several = found(subject, data, 80, tokens=("0", "80"), documents="multi", own="32")
    assert [own["loss_at_shortest"] for own in several] == [own["loss"] for own in single]
    assert all(own["own_tokens"] == 32 for own in several)
    (row,) = measured(subject, data, tokens=("80",), documents="multi", own="32")
    # keys and values of 4 float32 components in each of 2 KV heads
    assert row["memory_bytes"] == (80 + 32) * 2 * 2 * 4 * 4
    with pytest.raises(LongFocusError, match="have no 9,000 tokens in pieces of 32"):
        measured(subject, data, tokens=("9000",), documents="multi", own="32")


def test_evaluation_with_the_best_keys_only(data: Path) -> None:
    losses = {}
    for options in ({}, {"search": "exact", "top_k": 64}, {"search": "exact", "top_k": 2}):
        subject = Subject(small_model(), byte_tokenizer(), MemoryOptions(**options))
        (row,) = measured(subject, data, tokens=("64",), max_documents=2)
        losses[options.get("top_k")] = row["loss"]
    assert losses[64] == pytest.approx(losses[None], rel=1e-5)
    assert losses[2] != pytest.approx(losses[None], rel=1e-5)


def test_evaluation_of_a_model_without_memory_has_all_in_its_prompt(data: Path) -> None:
    model = random_model("llama", {**SIZES, "vocab_size": VOCABULARY}, "sdpa")
    subject = Subject(model, byte_tokenizer(), window_prefix=(1,))
    for own in found(subject, data, 40, tokens=("40",), evaluated=24, windows=1):
        text, place = (data / own["document"]).read_text(), own["place"]
        ids = torch.tensor(byte_tokenizer()(text)["input_ids"])[place - 40 : place + 24]
        with torch.no_grad():
            logits = model(torch.cat([torch.tensor([1]), ids])[None]).logits[0, 41:-1]
        assert own["loss"] == pytest.approx(functional.cross_entropy(logits, ids[41:]).item())
        assert own["target_tokens"] == 23


@pytest.mark.parametrize("before", [0, 16, 70, 160])
def test_evaluation_of_a_transformer_xl_is_its_training_forward(
    before: int, tmp_path: Path
) -> None:
    model = random_model("llama", SIZES, "sdpa")
    (tmp_path / "recipe.json").write_text(json.dumps({"method": "transformer_xl", "window": 16}))
    ids = torch.randint(97, (before + 16,), generator=torch.Generator().manual_seed(before))
    subject = Subject(model, folder=tmp_path)
    with empty_context(subject) as context:
        context.read(ids[:before])
        loss = mean_loss(context, ids[before:])
    # all windows one after the other, of which the last 4 can matter to 4 layers
    method, logits = TransformerXL(16), torch.empty(0)
    for window in ids[before % 16 :].split(16):
        batch = {"input_ids": window[None], "documents": torch.zeros(1, 16, dtype=torch.long)}
        with torch.no_grad():
            logits = method.forward(model, batch, {}).logits[0, :-1]
    assert loss == pytest.approx(functional.cross_entropy(logits, ids[before + 1 :]).item())


def test_evaluation_refuses_what_does_not_fit(data: Path, tmp_path: Path) -> None:
    subject = Subject(small_model(), byte_tokenizer())
    with pytest.raises(LongFocusError, match="which has room for 16 tokens"):
        found(subject, data, 0, evaluated=17)
    with pytest.raises(LongFocusError, match="None of the 6 documents of --data has 99,016 tokens"):
        found(subject, data, 0, tokens=("0", "99000"))
    with pytest.raises(LongFocusError, match="two documents called short"):
        found(subject, data, 0, tokens=("0",), data=(data, data / "short.txt"))
    for given, told in (
        ({"data": ()}, "--data is missing"),
        ({"own": "4K"}, "--own is for"),
        ({"windows": 0}, "at least 1"),
        ({"evaluated": 1}, "at least 2"),
    ):
        with pytest.raises(LongFocusError, match=told):
            PerplexitySettings(**{"data": (data,), **given})


def test_evaluation_chooses_documents_by_length_and_hash(data: Path) -> None:
    documents = HeldOut([data], byte_tokenizer())
    all_long = documents.chosen(9 * PERIOD, 50, seed=1)
    assert sorted(own.name for own in all_long) == [f"document_{i}.txt" for i in range(1, 5)]
    assert [own.name for own in documents.chosen(9 * PERIOD, 2, seed=1)] == [
        own.name for own in all_long[:2]
    ]
    orders = {tuple(own.name for own in documents.chosen(1, 50, seed)) for seed in range(4)}
    assert len(orders) > 1


def test_evaluation_reads_files_whose_names_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("text " * 100)
    assert hashes(PerplexitySettings(data=(tmp_path,)))
    (own,) = HeldOut([tmp_path], byte_tokenizer()).chosen(10, 5, seed=1)
    assert own.name == name


def test_evaluation_names_the_option_of_a_folder_without_texts(tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match=r"--text .* holds no text"):
        HeldOut([tmp_path], byte_tokenizer(), "--text")


def _holds(ids: list[int], piece: list[int]) -> bool:
    return any(ids[start : start + len(piece)] == piece for start in range(len(ids)))


def test_evaluation_draws_other_documents_each_once_before_any_comes_again(data: Path) -> None:
    documents = HeldOut([data], byte_tokenizer())
    texts = {own.name: own.ids.tolist() for own in documents.chosen(1, 50, seed=1)}
    pieces = [own.tolist() for own in documents.others("document_0.txt", 100, seed=1)]
    # 4 documents of 9 to 12 times 90 tokens have so many whole pieces
    assert len(pieces) == sum(90 * times // 100 for times in (9, 10, 11, 12))
    # each document has an order of letters of its own
    owners = [name for piece in pieces[:8] for name, ids in texts.items() if _holds(ids, piece)]
    assert len(set(owners[:4])) == len(set(owners[4:])) == 4
    assert "document_0.txt" not in owners
    again = [own.tolist() for own in documents.others("document_0.txt", 100, seed=1)]
    assert pieces == again
    assert pieces != [own.tolist() for own in documents.others("document_0.txt", 100, seed=2)]


@pytest.mark.parametrize(
    ("tokens", "places"), [(100, [60, 80]), (79, []), (80, [60]), (160, [66, 100, 133])]
)
def test_evaluation_windows_lie_evenly_and_do_not_overlap(tokens: int, places: list[int]) -> None:
    found = evenly(tokens, 60, 20, 3)
    assert found == places
    assert all(later - earlier >= 20 for earlier, later in pairwise(found))


def test_evaluation_intervals_draw_documents_and_pairs_are_narrow() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, 400)
    documents = [f"document {i}" for i in range(100) for _ in range(4)]
    one = np.repeat(hard[:100], 4) + rng.normal(0, 0.1, 400)
    other = one - 0.01 + rng.normal(0, 0.02, 400)
    row = intervals.mean_over_groups(one.tolist(), documents, "loss")
    low, high = row["loss_interval"]
    # four windows of a document say little more than one
    wide = 2 * 1.96 * hard[:100].std() / 10
    assert high - low == pytest.approx(wide, rel=0.1)
    assert low < row["loss"] < high
    paired = intervals.mean_over_groups((other - one).tolist(), documents, "change")
    assert paired["change_interval"][1] < 0
    assert paired == intervals.mean_over_groups((other - one).tolist(), documents, "change")
    assert intervals.mean_over_groups([1.0, 2.0], ["a", "a"], "loss") == {
        "loss": 1.5,
        "loss_interval": None,
    }
    assert intervals.mean_over_groups([], [], "loss") == {"loss": None, "loss_interval": None}
