"""Crossbatch is one softmax over the own window and the listed rows, with gradients into both."""

from fractions import Fraction

import pytest
import torch
from sets import Set, assert_same_with_gradients, random_set
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import longfocus
from longfocus.core import blocked, reference
from longfocus.core.crossbatch import Pool, attend_rows, crossbatch_attention
from longfocus.core.plans import Segment, packed_plan, segments_plan
from space import measured

ROWS, LENGTH = 5, 13
PLANS = {
    "paper": longfocus.paper_plan(2, d=2),
    "published": longfocus.published_plan(ROWS, context_range=3),
    "ragged": torch.tensor([[-1, 2, -1], [0, -1, 3], [-1, -1, -1], [-1, -1, 1], [3, 0, 2]]),
    "everybody": torch.tensor([[c for c in range(ROWS) if c != row] for row in range(ROWS)]),
    "one list": torch.tensor([[1], [-1], [-1], [-1], [-1]]),
    "small integers": torch.tensor([[1], [-1], [0], [2], [2]], dtype=torch.int8),
    "nobody": torch.empty(ROWS, 0, dtype=torch.long),
}

every_plan = pytest.mark.parametrize("name", PLANS)


def window(rows: int, *, heads: int = 4, kv_heads: int = 2, **settings: object) -> Set:
    return random_set(LENGTH, LENGTH, batch=rows, heads=heads, kv_heads=kv_heads, **settings)


def half_real(rows: int) -> Tensor:
    """Padding on the left, more in every row; the last row is padding only."""
    real = torch.arange(LENGTH) >= 3 * torch.arange(rows)[:, None]
    real[-1] = False
    return real


def slope(rows: int) -> Tensor:
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    bias = -0.1 * torch.arange(1, rows + 1)[:, None, None, None] * distance
    return bias.double()


def with_lse(output: Tensor) -> tuple[Tensor, Tensor]:
    """Output alone, in the form that is compared."""
    return output, torch.zeros(output.shape[:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_plan
def test_crossbatch_has_the_values_and_gradients_of_the_formula(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", 5)
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)
    plan = PLANS[name]
    rows = len(plan)
    first_key = torch.randn(rows, 2, LENGTH, 8, dtype=torch.float64).to(dtype)

    def ours(query: Tensor, key: Tensor, value: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        bias = slope(rows).to(dtype)
        return with_lse(crossbatch_attention(query, key, value, plan, first, bias, half_real(rows)))

    def theirs(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, first = (tensor.double() for tensor in inputs)
        bias, valid = slope(rows), half_real(rows)
        return with_lse(reference.crossbatch(query, key, value, plan.long(), first, bias, valid))

    assert_same_with_gradients(ours, theirs, (*window(rows, dtype=dtype), first_key))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3), (4, 1)])
@every_plan
def test_without_options_keys_serve_both_places_and_all_tokens_are_real(
    name: str, heads: int, kv_heads: int
) -> None:
    plan = PLANS[name]

    def ours(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return with_lse(crossbatch_attention(*inputs, plan))

    def theirs(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return with_lse(reference.crossbatch(*inputs, plan.long()))

    assert_same_with_gradients(ours, theirs, window(len(plan), heads=heads, kv_heads=kv_heads))


def test_a_plan_without_contexts_is_causal_attention_bit_for_bit() -> None:
    inputs = window(3)
    empty = crossbatch_attention(*inputs, torch.empty(3, 0, dtype=torch.long))
    nobody = crossbatch_attention(*inputs, torch.full((3, 2), -1))
    plain = reference.attention(*inputs, scale=8**-0.5, causal=True)[0]
    assert empty.equal(nobody)
    torch.testing.assert_close(empty, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "value"), [("scale", 0.9), ("softcap", 2.0)])
def test_scale_and_softcap_hold_for_the_own_window_and_for_the_other_rows(
    name: str, value: float
) -> None:
    query, key, values = window(2)
    found = crossbatch_attention(query, key, values, torch.tensor([[-1], [0]]), **{name: value})
    ahead = torch.ones(LENGTH, LENGTH).triu(1).bool()
    bias = torch.zeros(LENGTH, 2 * LENGTH, dtype=torch.float64)
    bias[:, LENGTH:].masked_fill_(ahead, -torch.inf)
    expected, _ = reference.attention(
        query[1:],
        torch.cat([key[:1], key[1:]], 2),
        torch.cat([values[:1], values[1:]], 2),
        bias=bias[None, None],
        **{"scale": 8**-0.5, name: value},
    )
    torch.testing.assert_close(found[1:], expected, atol=1e-12, rtol=0)


def test_the_order_of_contexts_does_not_matter() -> None:
    inputs = window(3)
    one = crossbatch_attention(*inputs, torch.tensor([[1, 2], [-1, 0], [0, 1]]))
    other = crossbatch_attention(*inputs, torch.tensor([[2, 1], [0, -1], [1, 0]]))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_padding_of_other_rows_takes_no_attention_and_no_gradient() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in window(2))
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :4] = False
    plan = torch.tensor([[-1], [0]])
    output = crossbatch_attention(query, key, value, plan, torch.zeros_like(key), valid=real)
    output[1].sum().backward()
    assert value.grad is not None
    assert value.grad[0, :, :4].eq(0).all()
    assert value.grad[0, :, 4:].ne(0).all()


def test_padding_of_other_rows_may_hold_nan() -> None:
    query, key, value = window(2)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :4] = False
    plan = torch.tensor([[-1], [0]])
    expected = crossbatch_attention(query, key, value, plan, valid=real)
    key[0, :, :4], value[0, :, :4] = float("nan"), float("inf")
    found = crossbatch_attention(query, key, value, plan, valid=real)
    assert found[1].equal(expected[1])


def test_bfloat16_and_autocast_stay_close_to_the_formula() -> None:
    plan = PLANS["everybody"]
    inputs = window(ROWS, dtype=torch.bfloat16)
    expected = reference.crossbatch(*(tensor.double() for tensor in inputs), plan)
    narrow = crossbatch_attention(*inputs, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = crossbatch_attention(*(tensor.float() for tensor in inputs), plan)
    assert narrow.dtype == torch.bfloat16
    assert cast.dtype == torch.float32
    for found in (narrow, cast):
        torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0)


def tiny_model(memory_layers: tuple[int, ...] = (0, 2)) -> LlamaForCausalLM:
    sizes = {"hidden_size": 24, "intermediate_size": 24, "vocab_size": 31}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=32)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return longfocus.attach(
        model, longfocus.FocusConfig(memory_layers=memory_layers, window=LENGTH)
    )


@pytest.mark.parametrize(
    "plan",
    [
        longfocus.paper_plan(3, d=2),
        longfocus.published_plan(6, context_range=4),
        longfocus.published_plan(6, context_range=4, stepping=True, packing=3),
    ],
    ids=["paper", "published", "packed"],
)
def test_a_changed_token_leaves_the_logits_before_it_in_its_row_unchanged(plan: Tensor) -> None:
    model = tiny_model()
    text = torch.randint(0, 31, (6, LENGTH))

    def logits(input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids, additional_contexts=plan, use_cache=False).logits

    before = logits(text)
    for row in range(6):
        for token in (0, 5, LENGTH - 1):
            changed = text.clone()
            changed[row, token] = (text[row, token] + 1) % 31
            after = logits(changed)
            assert after[row, :token].equal(before[row, :token])
            assert after[row, token:].ne(before[row, token:]).any()
            # the rows that list it see it
            seen_by = (plan == row).any(1)
            assert after[seen_by].ne(before[seen_by]).flatten(1).any(1).all()


DOCUMENTS_OF_PLANS = {
    "packed": (packed_plan(2, windows=3, d=2), 3),
    "published": (longfocus.published_plan(6, context_range=5, packing=3), 3),
    "stepping": (longfocus.published_plan(6, context_range=5, packing=2, stepping=True), 2),
    "segments": (
        segments_plan(2, [Segment(Fraction(1, 2), 0, 0), Segment(Fraction(1, 2), 1, 1)]),
        2,
    ),
    "thirds": (segments_plan(2, [Segment(Fraction(1, 3), n, n) for n in range(3)]), 3),
}


@pytest.mark.parametrize("name", DOCUMENTS_OF_PLANS)
def test_a_document_never_sees_its_own_future_through_other_documents(name: str) -> None:
    plan, windows = DOCUMENTS_OF_PLANS[name]
    model = tiny_model((0, 1, 2))
    text = torch.randint(0, 31, (len(plan), LENGTH))

    def logits(input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            found = model(input_ids, additional_contexts=plan, use_cache=False).logits
        # (documents, tokens of a document, vocabulary)
        return found.reshape(-1, windows * LENGTH, 31)

    before = logits(text)
    for row in range(len(plan)):
        changed = text.clone()
        changed[row, 4] = (text[row, 4] + 1) % 31
        document, window = divmod(row, windows)
        earlier = window * LENGTH + 4
        assert logits(changed)[document, :earlier].equal(before[document, :earlier])


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (torch.tensor([[0], [0]]), "lists itself"),
        (torch.tensor([[2], [0]]), r"outside -1\.\.1"),
        (torch.tensor([[1]]), r"integer tensor \[2, contexts\]"),
        (torch.tensor([[1.0], [0.0]]), "float32"),
    ],
    ids=["itself", "outside", "shape", "type"],
)
def test_the_model_refuses_a_plan_that_cannot_be_meant(plan: Tensor, reason: str) -> None:
    with pytest.raises(longfocus.LongFocusError, match=reason):
        tiny_model()(torch.zeros(2, LENGTH, dtype=torch.long), additional_contexts=plan)


def test_space_is_linear_in_the_batch_whatever_the_number_of_contexts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, length, heads, dim = 16, 64, 2, 16
    block = 16 * batch * heads * length
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", 16)
    plan = torch.tensor([[c for c in range(batch) if c != row] for row in range(batch)])
    linear, gathered = (rows * length * heads * dim for rows in (batch, plan.numel()))
    tensors = random_set(length, length, batch=batch, heads=heads, kv_heads=heads, dim=dim)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    with measured() as space:
        crossbatch_attention(*inputs, plan).sum().backward()
    assert 0 < space.largest <= max(block, linear) < gathered / 10
    assert 0 < space.saved <= 10 * linear < gathered


def test_rows_that_are_listed_by_nobody_get_no_gradient_from_others() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in window(3))
    output, lse = attend_rows(query, Pool(key, value), torch.tensor([[1], [-1], [1]]), scale=0.3)
    assert lse[1].isneginf().all()
    assert output[1].eq(0).all()
    (output.sum() + lse.exp().sum()).backward()
    for tensor in (key, value):
        assert tensor.grad is not None
        assert tensor.grad[[0, 2]].eq(0).all()
        assert tensor.grad[1].ne(0).any()
