"""Transformer-XL: a window sees the window before it, without gradient, as a plain model would see both at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running_rows import (
    WINDOW,
    Run,
    assert_resumes_exactly,
    assert_same_training,
    loss_arguments,
    one_process,
    rows_oracle,
    running_rows,
    stepped,
    steps,
)
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache

import longfocus
from families import FAMILIES, SIZES, Family, family, random_model, refused_model, tiny_model
from longfocus.training.methods import Batch
from longfocus.training.transformer_xl import TransformerXL
from oracle import Memory

ENTRY = family("llama_gqa")


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.name)
def test_rows_train_as_in_a_plain_model_that_sees_two_windows(entry: Family) -> None:
    model, plain, rows = tiny_model(entry).train(), tiny_model(entry).train(), running_rows()
    actual = stepped(TransformerXL(WINDOW), model, rows)
    expected = rows_oracle(plain, rows, WINDOW, Memory(range(4), "true"))
    assert_same_training(actual, expected, (model, plain), rows)


def test_eager_attention_takes_the_same_mask() -> None:
    rows = running_rows()
    models = [tiny_model(ENTRY, attention).train() for attention in ("eager", "sdpa")]
    found = [stepped(TransformerXL(WINDOW), model, rows) for model in models]
    assert_same_training(found[0], found[1], (models[0], models[1]), rows)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_second_window_of_a_document_has_the_logits_of_both_windows_at_once(
    layers: int,
) -> None:
    model = random_model("llama", {**SIZES, "num_hidden_layers": layers}, "sdpa")
    rows = running_rows([[2 * WINDOW]] * 3)
    with torch.no_grad():
        second = [output.logits for output in steps(TransformerXL(WINDOW), model, rows)][1]
        expected = model(rows.input_ids).logits[:, WINDOW:]
    torch.testing.assert_close(second, expected, atol=5e-5, rtol=0)


def test_keys_are_those_of_the_weights_of_then_and_carry_no_gradient() -> None:
    model, plain = tiny_model(ENTRY).train(), tiny_model(ENTRY).train()
    rows = running_rows([[2 * WINDOW]] * 2)
    method, (first, second) = TransformerXL(WINDOW), rows.batches()
    cache = DynamicCache(config=plain.config)
    method.forward(model, first, loss_arguments(first, 1)).loss.backward()
    model.zero_grad()
    with torch.no_grad():
        plain(first["input_ids"], past_key_values=cache)
        for changed in (model, plain):
            changed.model.layers[1].self_attn.k_proj.weight.mul_(0.5)
    for output in (
        method.forward(model, second, loss_arguments(second, 9)),
        plain(second["input_ids"], past_key_values=cache, **loss_arguments(second, 9)),
    ):
        output.loss.backward()
    for (name, actual), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, atol=2e-5, rtol=1e-4, msg=name)


def test_positions_do_not_grow_however_long_a_row_runs() -> None:
    model = random_model("llama", {**SIZES, "num_hidden_layers": 1}, "sdpa")
    long = running_rows([[40 * WINDOW]] * 2)
    short = type(long)(*(t[:, -2 * WINDOW :] for t in vars(long).values()))
    with torch.no_grad():
        # keys of a first layer depend on nothing but their own tokens
        ends = [list(steps(TransformerXL(WINDOW), model, rows))[-1] for rows in (long, short)]
    assert ends[0].logits.equal(ends[1].logits)


def test_a_document_that_has_ended_and_padding_are_never_seen_again() -> None:
    model = random_model("llama", {**SIZES, "num_hidden_layers": 1}, "sdpa")
    rows, changed = running_rows(), running_rows()
    documents = rows.documents
    ended = (documents == 1) | (documents == 3) | (documents < 0)
    changed.input_ids[ended] = 55
    with torch.no_grad():
        plain, other = (
            torch.cat([output.logits for output in steps(TransformerXL(WINDOW), model, given)], 1)
            for given in (rows, changed)
        )
    # both documents end in the second window
    after = rows.is_token & (torch.arange(documents.shape[1]) >= 2 * WINDOW)
    assert plain[after].equal(other[after])
    assert not plain[ended].allclose(other[ended], atol=0.1)


def test_it_leaves_nothing_on_the_model() -> None:
    model, rows = tiny_model(ENTRY).train(), running_rows()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    stepped(TransformerXL(WINDOW), model, rows)
    broken = Batch(**{**rows.batches()[0], "input_ids": torch.full((5, WINDOW), 10**6)})
    with pytest.raises(IndexError):
        TransformerXL(WINDOW).forward(model, broken, {})
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_an_interrupted_run_goes_on_bit_for_bit(precision: str, tmp_path: Path) -> None:
    assert_resumes_exactly(lambda: run(precision), tmp_path / "state.pt")


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_rounded_training_is_near_the_exact_one(precision: str) -> None:
    assert run(precision).losses() == pytest.approx(run().losses(), abs=0.1)


def test_wrapped_models_train_as_bare_ones(tmp_path: Path) -> None:
    rows, plain = running_rows(), tiny_model(ENTRY).train()
    expected = stepped(TransformerXL(WINDOW), plain, rows)
    with one_process(tmp_path / "store"):
        model = tiny_model(ENTRY).train()
        wrapped = DistributedDataParallel(model)
        assert_same_training(
            stepped(TransformerXL(WINDOW), wrapped, rows), expected, (model, plain), rows
        )


# peft 0.21 asks models by the names that transformers 5.23 deprecates: https://github.com/huggingface/peft
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_adapters_train() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped, rows = peft.get_peft_model(tiny_model(ENTRY).train(), config), running_rows()
    logits, _ = stepped(TransformerXL(WINDOW), wrapped, rows)
    # adapters begin with no effect
    torch.testing.assert_close(logits, stepped(TransformerXL(WINDOW), tiny_model(ENTRY), rows)[0])
    gradients = {n: p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
    assert gradients
    assert all("lora" in name for name in gradients)


def refused() -> dict[str, tuple[Any, Batch, TransformerXL]]:
    batch = running_rows().batches()[0]
    begun = TransformerXL(WINDOW)
    begun.forward(tiny_model(ENTRY), batch, {})
    attached = longfocus.attach(
        tiny_model(ENTRY), longfocus.FocusConfig(memory_layers=(1,), window=WINDOW)
    )
    recomputed = tiny_model(ENTRY).train()
    recomputed.activation_checkpointing_enable()
    fewer = Batch(**{name: tensor[:3] for name, tensor in batch.items()})
    fresh = TransformerXL(WINDOW)
    return {
        "focus_sdpa.*detach": (attached, batch, fresh),
        "checkpointing": (recomputed, batch, fresh),
        "GPT2.*rotary": (refused_model("gpt2"), batch, fresh),
        "windows of 9 tokens.*batch of 7": (tiny_model(ENTRY), batch, TransformerXL(9)),
        "3 rows.*had 5": (tiny_model(ENTRY), fewer, begun),
        "transformers model.*Linear": (torch.nn.Linear(2, 2), batch, fresh),
    }


@pytest.mark.parametrize("what", refused())
def test_what_cannot_be_meant_is_refused(what: str) -> None:
    model, batch, method = refused()[what]
    with pytest.raises(longfocus.LongFocusError, match=what):
        method.forward(model, batch, {})


def test_a_state_of_another_window_is_refused() -> None:
    with pytest.raises(longfocus.LongFocusError, match="windows of 7 tokens, this method's have 9"):
        TransformerXL(9).load_state_dict(TransformerXL(WINDOW).state_dict())
    with pytest.raises(longfocus.LongFocusError, match="window must be at least 1"):
        TransformerXL(0)


def run(precision: str = "float32") -> Run:
    return Run(TransformerXL(WINDOW), tiny_model(ENTRY), precision)
