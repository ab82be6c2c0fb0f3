"""The test oracle agrees with the published code, so it may judge other architectures too."""

import pytest
import torch
from golden_cases import Case, cases, name_of
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from oracle import Memory, oracle_logits, window_starts

INFERENCE = cases("inference")
ONE_CALL = [case for case in INFERENCE if len(case.description.get("calls", ())) == 1]
GREEDY = [case for case in INFERENCE if case.description.get("generate", {}).get("step_logits")]


def plain_llama(case: Case) -> LlamaForCausalLM:
    """The weights of a case in a stock model that knows nothing of memory."""
    known = set(LlamaConfig().to_dict()) - {
        "transformers_version",
        "torch_dtype",
        "architectures",
        "model_type",
    }
    config = LlamaConfig(**{name: value for name, value in case.config.items() if name in known})
    config.rope_parameters = {"rope_type": "default", "rope_theta": case.config["rope_theta"]}
    model = LlamaForCausalLM(config)
    model.load_state_dict(load_file(case.model_folder / "model.safetensors"))
    return model.eval()


def memory_of(case: Case) -> Memory:
    config = case.config
    positions = "window_start" if config["mem_positionals"] else "none"
    return Memory(config["mem_layers"], positions, dtype=getattr(torch, config["mem_dtype"]))


def kept_tokens(case: Case, call: dict) -> int:
    given = call["last_context_length"]
    return case.config["last_context_length"] if given is None else given


@pytest.mark.parametrize("case", ONE_CALL, ids=name_of)
def test_oracle_reproduces_golden_logits(case: Case) -> None:
    (call,) = case.description["calls"]
    input_ids, mask = case.tensor(call["input_ids"]), case.tensor(call["attention_mask"])
    starts = window_starts(
        input_ids.shape[1], kept_tokens(case, call), case.config["max_position_embeddings"]
    )
    logits = oracle_logits(
        plain_llama(case), input_ids, starts, memory_of(case), attention_mask=mask
    )
    compare = case.tensor(call["compare"]).bool()
    torch.testing.assert_close(
        logits[compare], case.tensor(call["logits"])[compare], **case.tolerance
    )


@pytest.mark.parametrize("case", GREEDY, ids=name_of)
def test_oracle_reproduces_golden_generation(case: Case) -> None:
    call = case.description["generate"]
    sequences, prompt = case.tensor(call["sequences"]), case.tensor(call["input_ids"]).shape[1]
    mask = torch.ones_like(sequences)
    mask[:, :prompt] = case.tensor(call["attention_mask"])
    window = case.config["max_position_embeddings"]
    starts = window_starts(prompt, kept_tokens(case, call), window, call["max_new_tokens"])
    logits = oracle_logits(
        plain_llama(case), sequences, starts, memory_of(case), attention_mask=mask
    )
    steps = logits[:, prompt - 1 : -1].transpose(0, 1)
    torch.testing.assert_close(steps, case.tensor(call["step_logits"]), **case.tolerance)
    assert steps.argmax(-1).T.equal(sequences[:, prompt:])
