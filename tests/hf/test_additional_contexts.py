"""`AdditionalContexts`: padding that only others must not see, and the positive mass of every memory layer."""

import pytest
import torch
from attached import attached
from crossbatch_oracle import crossbatch_oracle
from training_steps import assert_same_gradients, gradients, training_batch

import longfocus
from families import family, tiny_model
from longfocus.core.additional import AdditionalContexts, PositiveMass
from longfocus.core.plans import packed_plan
from longfocus.training.contexts import parse_contexts, positives
from longfocus.training.crossbatch import Crossbatch
from longfocus.training.methods import Batch
from longfocus.training.schedule import parse_schedule
from oracle import Memory

PLAN = packed_plan(3, windows=2, d=2)
PADDING = (0, 3, 5, 0, 2, 4)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "gpt_oss", "stablelm"])
def test_valid_without_a_mask_trains_as_the_attention_mask_for_padding_on_the_right(
    name: str,
) -> None:
    entry = family(name)
    batch = training_batch(PADDING)
    masked, bare = (attached(entry, dtype=torch.float64).train() for _ in range(2))
    expected = masked(**batch, additional_contexts=PLAN)
    expected.loss.backward()
    real = batch.pop("attention_mask").bool()
    actual = bare(**batch, additional_contexts=AdditionalContexts(PLAN, real))
    actual.loss.backward()
    torch.testing.assert_close(actual.logits[real], expected.logits[real], atol=1e-6, rtol=0)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert_same_gradients(bare, masked)


def test_a_wrapped_plan_is_the_plan_bit_for_bit() -> None:
    model, batch = attached(family("llama_gqa")).train(), training_batch(PADDING)
    bare = model(**batch, additional_contexts=PLAN).logits
    assert model(**batch, additional_contexts=AdditionalContexts(PLAN)).logits.equal(bare)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "gpt_oss"])
def test_detached_rows_are_seen_as_always_and_take_no_gradient_from_others(name: str) -> None:
    entry, batch = family(name), training_batch(PADDING)
    plain = tiny_model(entry, dtype=torch.float64).train()
    model, whole = (attached(entry, dtype=torch.float64).train() for _ in range(2))
    memory = Memory(entry.memory_layers)
    crossbatch_oracle(plain, PLAN, memory, batch, detached=True).loss.backward()
    found = model(**batch, additional_contexts=AdditionalContexts(PLAN, detached=True))
    found.loss.backward()
    assert_same_gradients(model, plain)
    expected = whole(**batch, additional_contexts=PLAN)
    assert found.logits.equal(expected.logits)
    expected.loss.backward()
    gradients_differ = [
        not a.grad.allclose(b.grad)
        for a, b in zip(*(m.parameters() for m in (model, whole)), strict=True)
    ]
    assert any(gradients_differ)


def test_valid_says_what_others_see_whatever_the_mask_of_the_own_window() -> None:
    entry, batch = family("llama_gqa"), training_batch()
    model = attached(entry, dtype=torch.float64)
    hidden = torch.ones_like(batch["input_ids"]).bool()
    # the previous window of document 0, which rows 1 and 5 see, is hidden
    hidden[0] = False
    with torch.no_grad():
        found = model(**batch, additional_contexts=AdditionalContexts(PLAN, hidden)).logits
        whole = model(**batch, additional_contexts=PLAN).logits
        without = model(**batch, additional_contexts=PLAN.masked_fill(PLAN == 0, -1)).logits
    torch.testing.assert_close(found, without, atol=1e-9, rtol=0)
    changed = found.ne(whole).flatten(1).any(1)
    assert changed.tolist() == [False, True, False, False, False, True]


def test_a_valid_of_another_shape_is_refused() -> None:
    model, batch = attached(family("llama_gqa")), training_batch()
    with pytest.raises(longfocus.LongFocusError, match=r"must be \[6, 13\]"):
        model(**batch, additional_contexts=AdditionalContexts(PLAN, torch.ones(6, 9).bool()))


def test_the_mass_is_measured_in_every_memory_layer_and_changes_nothing() -> None:
    entry, batch = family("llama_gqa"), training_batch(PADDING)
    plain, model = attached(entry).train(), attached(entry).train()
    plain(**batch, additional_contexts=PLAN).loss.backward()
    mass = PositiveMass(positives(PLAN, 2))
    model(**batch, additional_contexts=AdditionalContexts(PLAN, mass=mass)).loss.backward()
    assert mass.by_layer.keys() == set(entry.memory_layers)
    assert all(0 < share < 1 for share in mass.by_layer.values())
    for name, gradient in gradients(plain).items():
        assert gradients(model)[name].equal(gradient), name


def test_segments_train_by_the_plain_formula() -> None:
    entry, batch = family("llama_gqa"), training_batch(PADDING)
    contexts = parse_contexts("1/3(0,0) 1/3(1,1) 1/3(2,0)")
    plan = contexts.draw(6, 1, torch.Generator()).plan
    plain = tiny_model(entry, dtype=torch.float64).train()
    model = attached(entry, dtype=torch.float64).train()
    crossbatch_oracle(plain, plan, Memory(entry.memory_layers), batch).loss.backward()
    model(**batch, additional_contexts=plan).loss.backward()
    assert_same_gradients(model, plain)


def test_the_mass_of_a_batch_with_short_documents_is_that_of_the_others() -> None:
    """Documents without an earlier window, as short conversations are, would pull r_d towards 0."""
    model = attached(family("llama_gqa"))
    batch = training_batch((0, 0, 0, 0, 13, 0))

    def measured(rows: int) -> dict[int, float]:
        documents = torch.zeros(rows, 13, dtype=torch.long)
        documents[4:5] = -1
        given = Batch(
            input_ids=batch["input_ids"][:rows], labels=batch["labels"][:rows], documents=documents
        )
        method = Crossbatch(parse_contexts("paper"), parse_schedule("1"), mass_every=1)
        method.forward(model, given, {})
        return method.mass

    # with d = 1 all that is seen is positive
    assert measured(6) == pytest.approx(dict.fromkeys(family("llama_gqa").memory_layers, 1.0))
    assert measured(4) == pytest.approx(measured(6))
