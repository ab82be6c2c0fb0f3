"""generate(): whatever decoding asks for, every step has the logits of the whole text read with the same windows."""

from typing import Any

import pytest
import torch
from attached import KEPT, WINDOW, attached, starts_of
from generation import (
    ENTRY,
    GREEDY,
    SETTINGS,
    assert_close,
    oracle_steps,
    prompt,
    steps,
)
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import longfocus
from families import VOCABULARY, tiny_model
from oracle import window_starts

NEW = 20
EOS = 2


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def test_a_text_that_fits_the_window_is_generated_bit_for_bit_as_by_the_plain_model(
    model: PreTrainedModel,
) -> None:
    given = {**prompt(6, padding=(0, 2)), **GREEDY, "max_new_tokens": WINDOW - 5}
    expected, actual = tiny_model(ENTRY).generate(**given), model.generate(**given)
    assert actual.sequences.equal(expected.sequences)
    assert steps(actual).equal(steps(expected))


@pytest.mark.parametrize("length", [4, WINDOW, 30])
def test_greedy_decoding_of_left_padded_rows_has_the_logits_of_the_oracle(
    model: PreTrainedModel, length: int
) -> None:
    given = prompt(length, padding=(0, 2, length - 1))
    output = model.generate(**given, **GREEDY, max_new_tokens=NEW)
    starts = starts_of(length, NEW - 1)
    assert_close(
        steps(output), oracle_steps(output.sequences, NEW, starts, given["attention_mask"])
    )
    assert output.sequences[:, length:].equal(steps(output).argmax(-1))


def test_sampled_sequences_have_the_logits_of_the_oracle_and_are_drawn_from_them(
    model: PreTrainedModel,
) -> None:
    given = prompt(30, padding=(0, 17))
    torch.manual_seed(5)
    output = model.generate(
        **given, **SETTINGS, do_sample=True, top_k=0, num_return_sequences=3, max_new_tokens=NEW
    )
    assert len({tuple(row) for row in output.sequences.tolist()}) == 6
    expected = oracle_steps(
        output.sequences,
        NEW,
        starts_of(30, NEW - 1),
        given["attention_mask"].repeat_interleave(3, 0),
    )
    assert_close(steps(output), expected)
    torch.manual_seed(5)
    drawn = [torch.multinomial(step.softmax(-1), 1) for step in expected.unbind(1)]
    assert output.sequences[:, 30:].equal(torch.cat(drawn, 1))


def test_beam_search_as_wide_as_the_vocabulary_finds_the_best_of_all_continuations(
    model: PreTrainedModel,
) -> None:
    # The window is full, so the first generated token of every beam evicts it.
    given = prompt(WINDOW)
    output = model.generate(**given, **GREEDY, num_beams=VOCABULARY, max_new_tokens=2)
    every_token = torch.arange(VOCABULARY)[:, None]
    texts = torch.cat([given["input_ids"].expand(VOCABULARY, -1), every_token, every_token], 1)
    first, second = (
        oracle_steps(texts, 2, [0, WINDOW]).log_softmax(-1).unbind(1)
    )  # (token, vocabulary)
    both = first[0][:, None] + second
    best = divmod(int(both.argmax()), VOCABULARY)
    assert tuple(output.sequences[0, WINDOW:].tolist()) == best


def test_scores_of_beams_are_the_log_probabilities_of_the_oracle(model: PreTrainedModel) -> None:
    given = prompt(17, padding=(0, 5))
    output = model.generate(
        **given,
        **GREEDY,
        output_scores=True,
        num_beams=3,
        num_return_sequences=2,
        max_new_tokens=NEW,
        length_penalty=0.0,
    )
    logits = oracle_steps(
        output.sequences,
        NEW,
        starts_of(17, NEW - 1),
        given["attention_mask"].repeat_interleave(2, 0),
    )
    chosen = logits.log_softmax(-1).gather(-1, output.sequences[:, 17:, None])[..., 0]
    assert len({tuple(row) for row in output.sequences.tolist()}) == 4
    torch.testing.assert_close(output.sequences_scores, chosen.sum(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("many", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}])
def test_beams_and_return_sequences_share_the_memory_of_their_prompt(
    model: PreTrainedModel, many: dict[str, Any]
) -> None:
    length = 3 * WINDOW
    output = model.generate(
        **prompt(length, padding=(0, 4)), **{**GREEDY, **many}, max_new_tokens=WINDOW
    )
    cache = output.past_key_values
    assert cache.rows == 6
    for layer in ENTRY.memory_layers:
        remembered = 0
        for part in cache.layers[layer].store.parts():
            if remembered < length - KEPT:
                assert part.key.shape[0] == 2
            remembered += len(part)
        assert remembered == cache.memory_length(layer) > length


def test_beams_share_documents(model: PreTrainedModel) -> None:
    document = longfocus.read_document(model, None, torch.arange(3, 40), "numbers")
    cache = longfocus.FocusCache(model, documents=[document])
    model.generate(**prompt(8), **GREEDY, num_beams=4, max_new_tokens=9, past_key_values=cache)
    for layer in ENTRY.memory_layers:
        (part,) = cache.layers[layer].documents
        assert part.key.data_ptr() == document.layers[layer].key.data_ptr()
        assert part.value.data_ptr() == document.layers[layer].value.data_ptr()


def test_generating_about_a_document_has_the_logits_of_reading_it_first(
    model: PreTrainedModel,
) -> None:
    document = torch.arange(3, 3 + 2 * WINDOW + 4)
    given = prompt(8)
    cache = longfocus.FocusCache(
        model, documents=[longfocus.read_document(model, None, document, "d")]
    )
    output = model.generate(**given, **GREEDY, max_new_tokens=NEW, past_key_values=cache)
    whole = torch.cat([document[None], output.sequences], 1)
    behind = [len(document) + start for start in starts_of(8, NEW - 1)]
    assert_close(
        steps(output), oracle_steps(whole, NEW, [*range(0, len(document), WINDOW), *behind])
    )
    assert cache.get_seq_length() == 8 + NEW - 1


@pytest.mark.parametrize("kept", [1, 9, WINDOW])
def test_last_context_length_of_a_call_says_what_stays_in_the_window(
    model: PreTrainedModel, kept: int
) -> None:
    given = prompt(30)
    output = model.generate(**given, **GREEDY, max_new_tokens=NEW, last_context_length=kept)
    assert_close(
        steps(output), oracle_steps(output.sequences, NEW, window_starts(30, kept, WINDOW, NEW - 1))
    )


def test_embeddings_of_the_prompt_generate_the_same_tokens_as_its_ids(
    model: PreTrainedModel,
) -> None:
    given = prompt(30, padding=(0, 4))
    expected = model.generate(**given, **GREEDY, max_new_tokens=NEW)
    embeddings = model.get_input_embeddings()(given.pop("input_ids"))
    actual = model.generate(inputs_embeds=embeddings, **given, **GREEDY, max_new_tokens=NEW)
    assert actual.sequences.equal(expected.sequences[:, 30:])
    assert steps(actual).equal(steps(expected))


class Heard(BaseStreamer):
    """Keeps what a streamer is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.has_ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.has_ended = True


def test_a_streamer_hears_every_token_once_across_evictions(model: PreTrainedModel) -> None:
    heard = Heard()
    output = model.generate(**prompt(20), **GREEDY, max_new_tokens=NEW, streamer=heard)
    assert heard.tokens == output.sequences[0].tolist()
    assert heard.has_ended


def test_a_row_that_ended_is_padded_and_does_not_disturb_the_others(model: PreTrainedModel) -> None:
    given = prompt(20, padding=(0, 3))
    free = model.generate(**given, **GREEDY, max_new_tokens=NEW)
    # A token of the first row that the second never chooses ends the first row.
    ending = next(t for t in free.sequences[0, 22:].tolist() if t not in free.sequences[1, 20:])
    output = model.generate(**given, **{**GREEDY, "eos_token_id": ending}, max_new_tokens=NEW)
    end = 20 + free.sequences[0, 20:].tolist().index(ending) + 1
    assert output.sequences[0, :end].equal(free.sequences[0, :end])
    assert output.sequences[0, end:].eq(0).all()
    assert output.sequences[1].equal(free.sequences[1])
    assert_close(steps(output)[1], steps(free)[1])


def test_stopping_criteria_and_absent_limits_of_time_work_across_evictions(
    model: PreTrainedModel,
) -> None:
    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 36)

    output = model.generate(
        **prompt(20), **GREEDY, max_new_tokens=50, max_time=None, stopping_criteria=[AtLength()]
    )
    assert output.sequences.shape == (1, 36)
    assert output.past_key_values.get_seq_length() == 35


def test_the_given_cache_is_updated_in_place_and_returned(model: PreTrainedModel) -> None:
    cache = longfocus.FocusCache(model)
    output = model.generate(**prompt(20), **GREEDY, max_new_tokens=NEW, past_key_values=cache)
    assert output.past_key_values is cache
    assert cache.get_seq_length() == 20 + NEW - 1
    starts = starts_of(20, NEW - 1)
    for layer in range(4):
        assert cache.window_length(layer) == 20 + NEW - 1 - starts[-1]
        assert cache.memory_length(layer) == (starts[-1] if layer in ENTRY.memory_layers else 0)
    tokens = model.generate(**prompt(20), do_sample=False, eos_token_id=None, max_new_tokens=NEW)
    assert tokens.equal(output.sequences)
