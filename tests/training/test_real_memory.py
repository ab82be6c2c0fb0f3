"""Training on real memory: memory layers see what a row has read of its document, nothing else, without gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running_rows import (
    ROWS,
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
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import longfocus
from families import Family, family, tiny_model
from longfocus.training.history import History, continuation
from longfocus.training.methods import Batch
from longfocus.training.real_memory import RealMemory
from oracle import Memory

ENTRY = family("llama_gqa")
FAMILIES = ["llama_gqa", "gpt_neox", "phi3_longrope", "stablelm", "gemma2", "gpt_oss", "smollm3"]
FAR = 100


def attached(entry: Family = ENTRY, **settings: Any) -> PreTrainedModel:
    """The family's tiny model with memory, in training mode; gates are not neutral."""
    layers = settings.pop("memory_layers", entry.memory_layers)
    config = longfocus.FocusConfig(memory_layers=layers, window=WINDOW, **settings)
    model = longfocus.attach(tiny_model(entry), config).train()
    generator = torch.Generator().manual_seed(5)
    for gate in gates(model).values():
        gate.data.normal_(generator=generator)
    return model


def gates(model: torch.nn.Module) -> dict[int, torch.nn.Parameter]:
    found = [p for name, p in model.named_parameters() if name.endswith("focus_gate")]
    return dict(zip(ENTRY.memory_layers, found, strict=False))


def oracle_of(model: PreTrainedModel, entry: Family, **settings: Any) -> Memory:
    """The memory of `model` as the oracle knows it, with gates of its own."""
    copies = {i: gate.detach().clone().requires_grad_() for i, gate in gates(model).items()}
    return Memory(entry.memory_layers, gates=copies, **settings)


@pytest.mark.parametrize(
    ("name", "merge"),
    [*((name, "joint") for name in FAMILIES), *((name, "gate") for name in FAMILIES[:3])],
)
def test_rows_train_as_in_a_plain_model_that_sees_their_documents(name: str, merge: str) -> None:
    entry, rows = family(name), running_rows()
    model, plain = attached(entry, merge=merge), tiny_model(entry).train()
    memory = oracle_of(model, entry)
    actual = stepped(RealMemory(FAR), model, rows)
    assert_same_training(actual, rows_oracle(plain, rows, FAR, memory), (model, plain), rows)
    assert len(gates(model)) == (2 if merge == "gate" else 0)
    for layer, gate in gates(model).items():
        torch.testing.assert_close(gate.grad, memory.gates[layer].grad, atol=1e-5, rtol=1e-4)
        assert gate.grad.abs().min() > 0


@pytest.mark.parametrize("reach", [1, WINDOW + 3, 3 * WINDOW])
def test_tokens_out_of_reach_are_not_seen(reach: int) -> None:
    rows, model, plain = running_rows(), attached(), tiny_model(ENTRY).train()
    actual = stepped(RealMemory(reach), model, rows)
    expected = rows_oracle(plain, rows, reach, oracle_of(model, ENTRY))
    assert_same_training(actual, expected, (model, plain), rows)


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({"positions": "none"}, {"positions": "none"}),
        ({"search": "exact", "top_k": 3}, {"top_k": 3}),
        ({"search": "exact", "top_k": FAR}, {}),
        ({"search": "exact", "top_k": 3, "merge": "gate"}, {"top_k": 3}),
        ({"split": "longllama"}, {}),
    ],
    ids=str,
)
def test_the_settings_of_the_model_hold(settings: dict[str, Any], oracle: dict[str, Any]) -> None:
    rows, model, plain = running_rows(), attached(**settings), tiny_model(ENTRY).train()
    actual = stepped(RealMemory(FAR), model, rows)
    expected = rows_oracle(plain, rows, FAR, oracle_of(model, ENTRY, **oracle))
    assert_same_training(actual, expected, (model, plain), rows)


def test_a_memory_in_bfloat16_is_kept_in_it() -> None:
    rows, model, method = running_rows(), attached(memory_dtype="bfloat16"), RealMemory(FAR)
    logits, _ = stepped(method, model, rows)
    state = method.state_dict()
    assert {state[f"{what}.{i}"].dtype for what in ("keys", "values") for i in (1, 3)} == {
        torch.bfloat16
    }
    exact, _ = stepped(RealMemory(FAR), attached(), rows)
    difference = (logits - exact).abs()[rows.is_token]
    assert 0 < difference.median() < 0.02


def test_only_windows_of_the_same_document_are_seen_and_never_after_it_has_ended() -> None:
    def logits(rows: Any) -> Tensor:
        model = attached(memory_layers=(0,))
        with torch.no_grad():
            return torch.cat([output.logits for output in steps(RealMemory(FAR), model, rows)], 1)

    rows, changed = running_rows(), running_rows()
    ended = (rows.documents == 1) | (rows.documents == 3) | (rows.documents < 0)
    changed.input_ids[ended] = 55
    plain, other = logits(rows), logits(changed)
    # both documents end in the second window; pairs of a first layer depend on their own token alone
    after = rows.is_token & (torch.arange(ended.shape[1]) >= 2 * WINDOW)
    assert plain[after].equal(other[after])
    assert not plain[ended].allclose(other[ended], atol=0.1)


def test_what_no_row_can_see_any_more_is_forgotten() -> None:
    rows, method, model = running_rows(ROWS[1:4]), RealMemory(3 * WINDOW), attached()
    kept = []
    for _ in steps(method, model, rows):
        kept.append(method.state_dict()["documents"].shape[1])
    # as far back as the longest document that goes on, and at most as far as the memory reaches
    assert kept == [7, 14, 14, 18, 21]
    only = RealMemory(FAR)
    list(steps(only, model, running_rows([[9, 3, -9]])))
    assert only.state_dict()["documents"].shape[1] == 0


def test_a_document_that_comes_again_is_another_one() -> None:
    before = torch.tensor([[3, 3, 4, 3], [1, 1, -1, 1], [2, 2, 2, -1], [5, 5, 5, 5]])
    now = torch.tensor([[3, 3, 6, 3], [1, 1, 1, -1], [2, 2, 2, 2], [6, 5, 5, 5]])
    seen, sees = continuation(before, now)
    assert seen.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert sees.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    padding = continuation(torch.full((1, 2), -1), torch.full((1, 3), -1))
    assert not padding.seen.any()
    assert not padding.sees.any()


@pytest.mark.parametrize(
    ("precision", "merge"), [("float32", "gate"), ("autocast", "joint"), ("bfloat16", "gate")]
)
def test_an_interrupted_run_goes_on_bit_for_bit(precision: str, merge: str, tmp_path: Path) -> None:
    def run() -> Run:
        return Run(RealMemory(2 * WINDOW), attached(merge=merge), precision)

    assert_resumes_exactly(run, tmp_path / "state.pt")


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_rounded_training_is_near_the_exact_one(precision: str) -> None:
    exact, rounded = (
        Run(RealMemory(FAR), attached(merge="gate"), p).losses() for p in ("float32", precision)
    )
    assert rounded == pytest.approx(exact, abs=0.1)


def test_trained_gates_are_saved_with_the_model(tmp_path: Path) -> None:
    run = Run(RealMemory(FAR), attached(merge="gate"))
    before = {i: gate.detach().clone() for i, gate in gates(run.model).items()}
    run.losses(slice(3))
    assert len(before) == 2
    assert all((gates(run.model)[i] != gate).all() for i, gate in before.items())
    run.model.save_pretrained(tmp_path)
    loaded = longfocus.from_pretrained(tmp_path).train()
    assert all(gate.equal(gates(run.model)[i]) for i, gate in gates(loaded).items())
    batch = running_rows().batches()[3]
    found = []
    for model in (run.model, loaded):
        method = RealMemory(FAR)
        method.load_state_dict(run.method.state_dict())
        found.append(method.forward(model, batch, loss_arguments(batch, 1)).loss)
    assert found[0].equal(found[1])


def test_every_weight_takes_part_in_every_step_as_ddp_wants_it(tmp_path: Path) -> None:
    rows, plain = running_rows(), attached(merge="gate")
    expected = stepped(RealMemory(FAR), plain, rows)
    with one_process(tmp_path / "store"):
        model = attached(merge="gate")
        # raises in the second step if the first one, without memory, had left gates out
        wrapped = DistributedDataParallel(model)
        assert_same_training(
            stepped(RealMemory(FAR), wrapped, rows), expected, (model, plain), rows
        )


# peft 0.21 asks models by the names that transformers 5.23 deprecates: https://github.com/huggingface/peft
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_adapters_train() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped, rows = peft.get_peft_model(attached(), config), running_rows()
    logits, _ = stepped(RealMemory(FAR), wrapped, rows)
    # adapters begin with no effect
    torch.testing.assert_close(logits, stepped(RealMemory(FAR), attached(), rows)[0])
    gradients = [name for name, p in wrapped.named_parameters() if p.grad is not None]
    assert gradients
    assert all("lora" in name for name in gradients)


def test_a_step_that_fails_leaves_the_memory_as_it_was() -> None:
    model, method, (first, second, *_) = attached(), RealMemory(FAR), running_rows().batches()
    method.forward(model, first, {})
    before = method.state_dict()
    with pytest.raises(longfocus.LongFocusError, match="vocabulary"):
        method.forward(model, Batch(**{**second, "input_ids": second["input_ids"] + 999}), {})
    after = method.state_dict()
    assert all(after[name] is value for name, value in before.items())


def refused() -> dict[str, tuple[Any, Batch, RealMemory]]:
    batch, begun = running_rows().batches()[0], RealMemory(FAR)
    begun.forward(attached(), batch, {})
    recomputed = attached()
    recomputed.activation_checkpointing_enable()
    fewer = Batch(**{name: tensor[:3] for name, tensor in batch.items()})
    longer = Batch(**{name: tensor.repeat(1, 2) for name, tensor in batch.items()})
    fresh = RealMemory(FAR)
    return {
        "LlamaForCausalLM without.*attach": (tiny_model(ENTRY), batch, fresh),
        "without": (attached(memory_layers=()), batch, fresh),
        "positions='true'": (attached(positions="true"), batch, fresh),
        "checkpointing": (recomputed, batch, fresh),
        "3 rows.*had 5": (attached(), fewer, begun),
        "7 tokens.*rows of 14": (attached(), longer, fresh),
    }


@pytest.mark.parametrize("what", refused())
def test_what_cannot_be_meant_is_refused(what: str) -> None:
    model, batch, method = refused()[what]
    with pytest.raises(longfocus.LongFocusError, match=what):
        method.forward(model, batch, {})


def test_a_state_of_another_reach_is_refused() -> None:
    with pytest.raises(
        longfocus.LongFocusError, match="reaches 100 tokens, this method's reaches 9"
    ):
        RealMemory(9).load_state_dict(RealMemory(FAR).state_dict())
    with pytest.raises(longfocus.LongFocusError, match="reach must be at least 1"):
        RealMemory(0)


def test_a_history_keeps_nothing_of_what_it_was_cut_from() -> None:
    key = torch.randn(2, 1, 9, 4)
    history = History(torch.zeros(2, 0, dtype=torch.long), {1: (key[:, :, :0], key[:, :, :0])})
    longer = history.extended(torch.zeros(2, 9, dtype=torch.long), {1: (key, key)}, most=3)
    kept = longer.pairs[1][0]
    assert kept.equal(key[:, :, 6:])
    assert kept.untyped_storage().nbytes() == 2 * 3 * 4 * 4
