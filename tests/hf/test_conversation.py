"""A conversation goes on from the cache that generate returned, as if it had never been interrupted."""

from typing import Any

import pytest
import torch
from attached import KEPT, WINDOW, attached, text
from generation import ENTRY, GREEDY, assert_close, oracle_steps, prompt, steps
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import tiny_model
from oracle import Memory, oracle_logits

FIRST, ANSWER = 20, 7
PADDING = (0, 3)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def first_turn(model: PreTrainedModel, **more: Any) -> tuple[Any, Tensor]:
    """A turn of FIRST tokens and its ANSWER; the window then holds KEPT + ANSWER - 1 tokens."""
    given = prompt(FIRST, PADDING)
    output = model.generate(**given, **GREEDY, max_new_tokens=ANSWER, **more)
    assert output.past_key_values.window_length() == KEPT + ANSWER - 1
    return output, given["attention_mask"]


def said(output: Any, mask: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """The whole conversation when the user adds `more` tokens, and its mask."""
    added = text(more, padding=(0, 0))[0]
    whole = torch.cat([output.sequences, added], 1)
    return whole, torch.nn.functional.pad(mask, (0, whole.shape[1] - FIRST), value=1)


# The window began at token 15 and holds 11 tokens; the answer's last token has not been read yet.
BEGINNING = [0, WINDOW, FIRST - KEPT]
TURNS = {
    "fits, and is evicted while decoding": (1, [28]),
    "adds nothing": (0, [28]),
    "is cut, and fills the window first": (10, [28, 32]),
    "is cut into several windows": (30, [28, 41, 52]),
}


@pytest.mark.parametrize("gives", ["all ids", "new ids"])
@pytest.mark.parametrize(("added", "starts"), TURNS.values(), ids=TURNS)
def test_a_second_turn_has_the_logits_of_one_uninterrupted_conversation(
    model: PreTrainedModel, added: int, starts: list[int], gives: str
) -> None:
    output, mask = first_turn(model)
    whole, mask = said(output, mask, added)
    cache = output.past_key_values
    given = whole if gives == "all ids" else whole[:, cache.get_seq_length() :]
    assert given.shape[1] == (whole.shape[1] if gives == "all ids" else added + 1)
    new = 5
    again = model.generate(
        given, attention_mask=mask, past_key_values=cache, **GREEDY, max_new_tokens=new
    )
    assert again.past_key_values is cache
    assert again.sequences.shape[1] == given.shape[1] + new
    everything = torch.cat([whole, again.sequences[:, -new:]], 1)
    assert_close(steps(again), oracle_steps(everything, new, BEGINNING + starts, mask))
    assert cache.get_seq_length() == everything.shape[1] - 1


def test_a_conversation_in_small_calls_equals_one_that_is_read_at_once(
    model: PreTrainedModel,
) -> None:
    # Windows are filled to their last token, so where a text is cut into calls that fit does not matter.
    input_ids, mask = text(4 * WINDOW, PADDING)
    cache, logits, start = longfocus.FocusCache(model), [], 0
    with torch.no_grad():
        while start < input_ids.shape[1]:
            for size in (1, 4, 1, 1, 6):
                stop = start + size
                given = {"attention_mask": mask[:, :stop], "past_key_values": cache}
                logits.append(model(input_ids[:, start:stop], **given).logits)
                start = stop
    expected = oracle_logits(
        tiny_model(ENTRY),
        input_ids,
        list(range(0, 4 * WINDOW, WINDOW)),
        Memory(ENTRY.memory_layers),
        attention_mask=mask,
    )
    real = mask.bool()
    assert_close(torch.cat(logits, 1)[real], expected[real])


def test_a_conversation_about_a_document_goes_on_with_it(model: PreTrainedModel) -> None:
    document = torch.arange(3, 3 + 2 * WINDOW)
    cache = longfocus.FocusCache(
        model, documents=[longfocus.read_document(model, None, document, "numbers")]
    )
    output, mask = first_turn(model, past_key_values=cache)
    whole, mask = said(output, mask, 10)
    again = model.generate(
        whole, attention_mask=mask, past_key_values=cache, **GREEDY, max_new_tokens=3
    )
    everything = torch.cat([document.expand(2, -1), again.sequences], 1)
    starts = [0, WINDOW, *(2 * WINDOW + start for start in [*BEGINNING, 28, 32])]
    mask = torch.nn.functional.pad(mask, (2 * WINDOW, 0), value=1)
    assert_close(steps(again), oracle_steps(everything, 3, starts, mask))


def test_several_answers_to_one_turn_go_on_from_copies_that_share_memory(
    model: PreTrainedModel,
) -> None:
    output, mask = first_turn(model)
    whole, mask = said(output, mask, 10)
    cache = output.past_key_values
    cache.batch_repeat_interleave(3)
    again = model.generate(
        whole.repeat_interleave(3, 0),
        attention_mask=mask.repeat_interleave(3, 0),
        past_key_values=cache,
        **{**GREEDY, "do_sample": True},
        max_new_tokens=3,
    )
    assert cache.layers[1].store.parts()[0].key.shape[0] == 2
    expected = oracle_steps(again.sequences, 3, [*BEGINNING, 28, 32], mask.repeat_interleave(3, 0))
    assert_close(steps(again), expected)


def test_the_published_rules_of_a_second_turn_evict_the_window_at_once() -> None:
    model = attached(ENTRY, split="longllama")
    output, mask = first_turn(model)
    whole, mask = said(output, mask, 10)
    again = model.generate(
        whole,
        attention_mask=mask,
        past_key_values=output.past_key_values,
        **GREEDY,
        max_new_tokens=3,
    )
    # 11 new tokens: all but the last KEPT are a window of their own, and push the old one out.
    assert_close(steps(again), oracle_steps(again.sequences, 3, [*BEGINNING, 26], mask))
