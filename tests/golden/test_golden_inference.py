"""Published LongLLaMA inference: logits, generated tokens, stored state and gradients of every case."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import Case, cases, name_of, relative_norm_error
from torch import Tensor
from transformers import PreTrainedModel

import longfocus

INFERENCE = cases("inference")
CALLS = [case for case in INFERENCE if "calls" in case.description]
GENERATE = [case for case in INFERENCE if "generate" in case.description]


class Conversation:
    """The calls of a case in order, on one FocusCache, with the mask of everything seen so far."""

    def __init__(self, case: Case, model: PreTrainedModel) -> None:
        self.case, self.model = case, model

    def start(self, batch: int) -> None:
        self.cache = longfocus.FocusCache(self.model)
        self.mask = torch.ones(batch, 0, dtype=torch.int64)

    def call(self, told: dict[str, Any]) -> Any:
        input_ids = self.case.tensor(told["input_ids"])
        if told["past"] is None:
            self.start(len(input_ids))
        self.extend_mask(self.case.tensor(told["attention_mask"]), input_ids)
        given = {
            "attention_mask": None if self.mask.all() else self.mask,
            "position_ids": self.case.tensor(told["position_ids"]),
            "labels": self.case.tensor(told["labels"]),
            "use_cache": told["use_cache"],
            "last_context_length": told["last_context_length"],
        }
        given = {name: value for name, value in given.items() if value is not None}
        output = self.model(input_ids=input_ids, past_key_values=self.cache, **given)
        assert self.cache.get_seq_length() == self.mask.shape[1]
        return output

    def extend_mask(self, mask: Tensor | None, input_ids: Tensor) -> None:
        """Published masks cover the window and the new tokens; ours cover everything, memory included."""
        window, new = self.cache.window_length(0), input_ids.shape[1]
        if mask is None:
            mask = torch.ones(len(input_ids), window + new, dtype=torch.int64)
        older = self.mask[:, : self.mask.shape[1] - window]
        self.mask = torch.cat([older, mask[:, -(window + new) :]], dim=1)


def close(case: Case, actual: Tensor, expected: Tensor, where: Tensor, what: str) -> None:
    """Equal within the tolerance of the case at the marked places."""
    assert actual.shape == expected.shape, what
    assert actual.isfinite().all(), f"{case.name}: {what} is not finite"
    actual, expected = actual[where].float(), expected[where].float()
    torch.testing.assert_close(
        actual, expected, **case.tolerance, msg=lambda text: f"{case.name}, {what}: {text}"
    )


@pytest.mark.parametrize("case", CALLS, ids=name_of)
def test_calls_reproduce_golden_logits_and_state(case: Case, published_model: Any) -> None:
    conversation = Conversation(case, published_model(case))
    with torch.set_grad_enabled(has_gradients(case)):
        for number, told in enumerate(case.description["calls"]):
            output = conversation.call(told)
            compare = case.tensor(told["compare"]).bool()
            close(
                case,
                output.logits,
                case.tensor(told["logits"]),
                compare,
                f"logits of call {number}",
            )
            if told["labels"] is not None:
                check_gradients(
                    case, conversation.model, output.loss, case.tensors[f"call{number}.loss"]
                )
    if case.description["state_after"] is not None:
        check_state(case, conversation)


def has_gradients(case: Case) -> bool:
    return any(told["labels"] is not None for told in case.description["calls"])


def check_gradients(case: Case, model: PreTrainedModel, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss.view(1), expected, **case.tolerance)
    loss.backward()
    parameters = dict(model.named_parameters())
    wanted = {
        name.removeprefix("grad."): value
        for name, value in case.tensors.items()
        if name.startswith("grad.")
    }
    assert wanted
    for name, gradient in wanted.items():
        assert relative_norm_error(parameters[name].grad, gradient) < 1e-3, name


def check_state(case: Case, conversation: Conversation) -> None:
    """Lengths of window and memory in every layer, and the stored tensors where the case has them."""
    cache, mask = conversation.cache, conversation.mask
    for told in case.description["state_after"]:
        layer = told["layer"]
        assert cache.window_length(layer) == told["local_len"], f"window of layer {layer}"
        assert cache.memory_length(layer) == told["mem_len"], f"memory of layer {layer}"
        stored = {
            name.rsplit(".", 1)[-1]: value
            for name, value in case.tensors.items()
            if name.startswith(f"state.{layer}.")
        }
        if "mem_keys" in stored:
            check_memory(case, cache, layer, stored)
        if "local_keys" in stored:
            in_window = mask[:, mask.shape[1] - told["local_len"] :].bool()
            for name in ("keys", "values"):
                actual = getattr(cache, f"window_{name}")(layer)
                expected = stored[f"local_{name}"]
                close(
                    case,
                    actual,
                    expected,
                    per_head(in_window, expected),
                    f"window {name} of layer {layer}",
                )


def check_memory(case: Case, cache: Any, layer: int, stored: dict[str, Tensor]) -> None:
    visible = stored["mem_visible"].bool()
    assert cache.memory_valid(layer).equal(visible), f"visible memory of layer {layer}"
    for name in ("keys", "values"):
        actual, expected = getattr(cache, f"memory_{name}")(layer), stored[f"mem_{name}"]
        assert str(actual.dtype) == f"torch.{case.config['mem_dtype']}"
        close(
            case, actual, expected, per_head(visible, expected), f"memory {name} of layer {layer}"
        )


def per_head(real: Tensor, states: Tensor) -> Tensor:
    """[batch, length] as a mask of [batch, heads, length, dim]."""
    return real[:, None, :, None].expand_as(states)


@pytest.mark.parametrize("case", GENERATE, ids=name_of)
def test_generate_reproduces_golden_tokens_and_logits(case: Case, published_model: Any) -> None:
    told = dict(case.description["generate"])
    expected = case.tensor(told.pop("sequences"))
    step_logits = case.tensor(told.pop("step_logits"))
    given = {name: case.tensor(told.pop(name)) for name in ("input_ids", "attention_mask")}
    if told["last_context_length"] is None:
        del told["last_context_length"]
    # 4.33 ignored eos_token_id=None, and so never stopped; 5.x honours it.
    assert told["eos_token_id"] is None
    model = published_model(case)
    output = model.generate(**given, **told, output_logits=True, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected.tolist()
    if step_logits is not None:
        everywhere = torch.ones_like(step_logits).bool()
        close(case, torch.stack(output.logits), step_logits, everywhere, "logits of the steps")


@pytest.mark.parametrize(
    "folder", sorted({case.model_folder for case in INFERENCE}), ids=lambda path: path.name
)
def test_golden_checkpoint_saved_and_loaded_again_is_unchanged(
    folder: Path, tmp_path: Path
) -> None:
    model = longfocus.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = longfocus.from_pretrained(tmp_path)
    input_ids = torch.randint(3, 97, (1, 90))
    with torch.no_grad():
        assert again(input_ids).logits.equal(model(input_ids).logits)
