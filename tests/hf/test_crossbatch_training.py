"""Crossbatch is ordinary training: losses and gradients of a plain formula, also when layers are recomputed."""

from typing import Any

import pytest
import torch
from attached import WINDOW, attached, with_memory
from crossbatch_oracle import crossbatch_oracle
from training_steps import assert_same_gradients, gradients, recompute, training_batch

import longfocus
from families import VOCABULARY, Family, family, tiny_model
from oracle import Memory

PLAN = longfocus.paper_plan(3, d=2)
FAMILIES = ["llama_gqa", "gpt_neox", "phi3_longrope", "stablelm", "gemma2", "gpt_oss", "smollm3"]
RECOMPUTING = ["llama_gqa", "gemma2", "gpt_oss"]

every_family = pytest.mark.parametrize("name", FAMILIES)
reentrant_or_not = pytest.mark.parametrize("use_reentrant", [True, False])


@pytest.mark.parametrize("padding", [(0,) * 6, (0, 3, 5, 0, 2, 5)], ids=["full", "padded"])
@every_family
def test_loss_and_gradients_equal_the_plain_formula(name: str, padding: tuple[int, ...]) -> None:
    entry = family(name)
    plain = tiny_model(entry, dtype=torch.float64).train()
    model = attached(entry, dtype=torch.float64).train()
    batch = training_batch(padding)
    expected = crossbatch_oracle(plain, PLAN, Memory(entry.memory_layers), batch)
    expected.loss.backward()
    actual = model(**batch, additional_contexts=PLAN)
    actual.loss.backward()
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(actual.logits[real], expected.logits[real], atol=5e-6, rtol=0)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert_same_gradients(model, plain)


@reentrant_or_not
@pytest.mark.parametrize("name", RECOMPUTING)
def test_recomputed_layers_give_the_same_loss_and_gradients(name: str, use_reentrant: bool) -> None:
    batch = training_batch((0, 3, 5, 0, 2, 5))
    plain = attached(family(name)).train()
    model = recompute(attached(family(name)).train(), use_reentrant=use_reentrant)
    losses = [m(**batch, additional_contexts=PLAN).loss for m in (plain, model)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    assert_same_gradients(model, plain)


def test_recomputing_where_the_architecture_drops_the_plan_is_refused() -> None:
    model = recompute(attached(family("stablelm")).train(), use_reentrant=False)
    with pytest.raises(longfocus.LongFocusError, match="checkpointing"):
        model(**training_batch(), additional_contexts=PLAN)


@pytest.mark.parametrize("name", ["llama_gqa", "stablelm"])
def test_a_context_gets_gradients_from_the_rows_that_see_it(name: str) -> None:
    model = attached(family(name)).train()
    batch = training_batch()
    del batch["attention_mask"]
    batch["labels"][:4] = -100
    embeddings = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=embeddings, **batch, additional_contexts=PLAN).loss.backward()
    # rows 4 and 5 are asked; they list rows 1, 2 and 2, 0
    reached = embeddings.grad.abs().sum((1, 2)) > 0
    assert reached.tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("name", ["llama_gqa", "stablelm"])
def test_padding_of_other_rows_is_never_seen(name: str) -> None:
    model = attached(family(name))
    batch = training_batch((6, 6, 6, 0, 0, 0))
    before = model(**batch, additional_contexts=PLAN).logits
    batch["input_ids"][:3, -6:] = 55
    after = model(**batch, additional_contexts=PLAN).logits
    assert after[3:].equal(before[3:])
    # without the mask the same tokens are seen
    del batch["attention_mask"]
    assert not model(**batch, additional_contexts=PLAN).logits[3:].allclose(before[3:], atol=1e-2)


def test_no_row_sees_its_own_future() -> None:
    model, batch, token = attached(family("llama_gqa")), training_batch(), 6
    before = model(batch["input_ids"], additional_contexts=PLAN).logits
    batch["input_ids"][4, token] = 55
    after = model(batch["input_ids"], additional_contexts=PLAN).logits
    assert after[4, :token].equal(before[4, :token])
    assert not after[4, token:].allclose(before[4, token:], atol=1e-2)


def test_a_plan_of_nobody_is_ordinary_training() -> None:
    plain, model = tiny_model(family("llama_gqa")).train(), attached(family("llama_gqa")).train()
    batch = training_batch((0, 3, 5, 0, 2, 5))
    losses = [
        plain(**batch).loss,
        model(**batch, additional_contexts=torch.full((6, 0), -1)).loss,
        model(**batch).loss,
    ]
    for loss in losses[:2]:
        loss.backward()
    assert losses[0].equal(losses[1])
    assert losses[0].equal(losses[2])
    for name, gradient in gradients(plain).items():
        assert gradients(model)[name].equal(gradient), name


@pytest.mark.parametrize("length", [9, 30])
def test_the_loss_counts_the_items_that_the_trainer_counts(length: int) -> None:
    model = attached(family("llama_gqa")).train()
    input_ids = torch.randint(3, VOCABULARY, (2, length))
    mean = model(input_ids, labels=input_ids, use_cache=True).loss
    shared = model(input_ids, labels=input_ids, use_cache=True, num_items_in_batch=7).loss
    torch.testing.assert_close(shared, mean * 2 * (length - 1) / 7)


def test_crossbatch_under_bfloat16_autocast_trains_all_weights() -> None:
    model = attached(family("llama_gqa")).train()
    batch = training_batch((0, 3, 5, 0, 2, 5))
    exact = model(**batch, additional_contexts=PLAN).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**batch, additional_contexts=PLAN).loss
    rounded.backward()
    torch.testing.assert_close(rounded, exact, atol=0.2, rtol=0)
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients(model).values())


def test_the_gate_of_a_memorizing_transformer_is_trained() -> None:
    model = attached(family("llama_gqa"), merge="gate").train()
    model(**training_batch(), additional_contexts=PLAN).loss.backward()
    gates = {n: g for n, g in gradients(model).items() if n.endswith("focus_gate")}
    assert len(gates) == 2
    assert all(g.shape == (6,) and g.abs().min() > 0 for g in gates.values())


def bad_plans() -> dict[str, Any]:
    return {
        "a row lists itself": torch.tensor([[-1], [0], [2], [0], [0], [0]]),
        "twice": torch.tensor([[1, 1]] + [[-1, -1]] * 5),
        "outside": torch.tensor([[6]] + [[-1]] * 5),
        r"\[6, contexts\]": torch.full((4, 1), -1),
        "integer": torch.zeros(6, 1),
    }


@pytest.mark.parametrize("wrong", bad_plans())
def test_a_plan_that_cannot_be_meant_is_refused(wrong: str) -> None:
    model = attached(family("llama_gqa"))
    with pytest.raises(longfocus.LongFocusError, match=wrong):
        model(**training_batch(), additional_contexts=bad_plans()[wrong])


def test_a_plan_excludes_a_cache_and_a_row_longer_than_the_window() -> None:
    model = attached(family("llama_gqa"))
    with pytest.raises(longfocus.LongFocusError, match="past_key_values"):
        model(
            **training_batch(),
            additional_contexts=PLAN,
            past_key_values=longfocus.FocusCache(model),
        )
    wide = with_memory(tiny_model(Family("l", "llama", {})), (1,), window=WINDOW - 1)
    with pytest.raises(longfocus.LongFocusError, match=str(WINDOW - 1)):
        wide(**training_batch(), additional_contexts=PLAN)
