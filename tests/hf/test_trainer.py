"""The library's own Trainer, and PEFT adapters, train a model with memory; nothing of ours stands in between."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attached import attached
from generation import ENTRY, GREEDY, prompt
from torch import Tensor
from training_steps import recompute, training_batch
from transformers import PreTrainedModel, Trainer, TrainingArguments

import longfocus
from families import tiny_model

peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

# peft 0.21 asks models by the names that transformers 5.23 deprecates: https://github.com/huggingface/peft
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

PLAN = longfocus.paper_plan(3, d=2)


def with_adapters(model: PreTrainedModel) -> Any:
    config = peft.LoraConfig(
        r=3,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    return peft.get_peft_model(model, config)


def crossbatches(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of windows with its plan, as a data collator makes it."""
    batch = {name: torch.stack([e[name] for e in examples]) for name in examples[0]}
    return {**batch, "additional_contexts": PLAN}


def examples(steps: int) -> list[dict[str, Tensor]]:
    batches = [training_batch((0, 3, 5, 0, 2, 5)) for _ in range(steps)]
    return [{n: t[row] for n, t in batch.items()} for batch in batches for row in range(6)]


def trained(model: Any, folder: Path, steps: int, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=6,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = Trainer(model, arguments, data_collator=crossbatches, train_dataset=examples(steps))
    trainer.train()
    return trainer


def test_the_trainer_takes_the_steps_of_a_loop_by_hand(tmp_path: Path) -> None:
    steps = 3
    model = attached(ENTRY)
    torch.manual_seed(3)
    settings = {"learning_rate": 0.01, "optim": "sgd", "lr_scheduler_type": "constant"}
    trainer = trained(model, tmp_path, steps, max_grad_norm=0.0, **settings)
    told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(told) == steps

    torch.manual_seed(3)
    rows, by_hand = examples(steps), attached(ENTRY).train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.01)
    order = [int(row) for row in order_of(trainer, len(rows))]
    for step in range(steps):
        batch = crossbatches([rows[row] for row in order[6 * step : 6 * step + 6]])
        loss = by_hand(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert told[step] == pytest.approx(loss.item(), abs=1e-4)
    for (name, actual), expected in zip(
        model.named_parameters(), by_hand.parameters(), strict=True
    ):
        torch.testing.assert_close(actual, expected, msg=name)


def order_of(trainer: Trainer, count: int) -> list[int]:
    """The rows in the order in which the trainer's first epoch takes them."""
    seed = trainer.args.data_seed or trainer.args.seed
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()


def test_adapters_train_under_checkpointing_and_autocast_and_then_generate_with_memory(
    tmp_path: Path,
) -> None:
    wrapped = with_adapters(attached(ENTRY))
    before = {n: p.detach().clone() for n, p in wrapped.named_parameters()}
    trained(
        wrapped,
        tmp_path,
        3,
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=0.01,
    )
    for name, parameter in wrapped.named_parameters():
        assert parameter.equal(before[name]) == ("lora" not in name), name
    # the trainer leaves its autocast on the outer model; the inner one is what remains
    model = wrapped.eval().base_model.model
    output = model.generate(**prompt(30), **GREEDY, max_new_tokens=12)
    assert output.past_key_values.memory_length(1) > 25


def test_merging_adapters_keeps_the_memory_and_changes_no_logits() -> None:
    wrapped = with_adapters(attached(ENTRY)).eval()
    given = prompt(40, padding=(0, 16))
    expected = wrapped(**given).logits
    assert not expected.allclose(attached(ENTRY)(**given).logits, atol=1e-2)
    generated = wrapped.generate(**given, **GREEDY, max_new_tokens=8)
    merged = wrapped.merge_and_unload()
    output = merged(**given)
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=0)
    assert output.past_key_values.memory_length(1) == 35
    assert merged.generate(**given, **GREEDY, max_new_tokens=8).sequences.equal(generated.sequences)
    plain = longfocus.detach(merged)
    assert type(plain) is type(tiny_model(ENTRY))


def test_the_memory_may_be_attached_to_a_model_that_has_adapters() -> None:
    wrapped = with_adapters(tiny_model(ENTRY))
    config = longfocus.FocusConfig(memory_layers=ENTRY.memory_layers, window=13)
    longfocus.attach(wrapped.base_model.model, config)
    output = wrapped(**prompt(40))
    assert output.past_key_values.memory_length(1) == 34


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_get_the_gradients_of_layers_that_are_not_recomputed(use_reentrant: bool) -> None:
    batch = crossbatches(examples(1))
    found = []
    for is_recomputed in (False, True):
        torch.manual_seed(4)
        model = with_adapters(attached(ENTRY)).train()
        if is_recomputed:
            recompute(model.base_model.model, use_reentrant=use_reentrant)
        model(**batch).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
