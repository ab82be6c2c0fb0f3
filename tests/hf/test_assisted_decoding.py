"""Assisted decoding gives exactly the text of greedy decoding, whatever is guessed and wherever windows end."""

from typing import Any

import pytest
import torch
from attached import WINDOW, attached
from generation import ENTRY, GREEDY, TOLERANCE, perturbed, steps
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import SIZES, VOCABULARY, Family, random_model, tiny_model
from long import mostly_long

NEW = 28


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def seeded_prompt(seed: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, length), generator=generator)


def assistant(kind: str) -> PreTrainedModel:
    """A model that guesses mostly right, often right, or almost never."""
    if kind == "stranger":
        small = {**SIZES, "num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2}
        made = random_model("llama", small, "sdpa")
    else:
        made = perturbed(tiny_model(ENTRY), {"twin": 0.0, "cousin": 0.03}[kind])
    made.generation_config.num_assistant_tokens = 4
    made.generation_config.num_assistant_tokens_schedule = "constant"
    made.generation_config.assistant_confidence_threshold = 0.0
    return made


def assert_assisted_equals_greedy(
    model: PreTrainedModel, input_ids: Tensor, assistance: dict[str, Any], **more: Any
) -> tuple[Any, Any]:
    """Both outputs, after at least two evictions."""
    given = {"input_ids": input_ids, "max_new_tokens": NEW, **GREEDY}
    greedy = model.generate(**given, **{name: make(model) for name, make in more.items()})
    assisted = model.generate(
        **given, **assistance, **{name: make(model) for name, make in more.items()}
    )
    assert assisted.sequences.tolist() == greedy.sequences.tolist()
    torch.testing.assert_close(steps(assisted), steps(greedy), atol=TOLERANCE, rtol=0)
    assert min(assisted.past_key_values.memory_length(i) for i in ENTRY.memory_layers) >= 2 * WINDOW
    return greedy, assisted


@pytest.mark.parametrize("length", mostly_long([4, 5, WINDOW - 1, WINDOW, WINDOW + 1, 30], WINDOW))
@pytest.mark.parametrize("kind", ["twin", "cousin", "stranger"])
def test_an_assistant_does_not_change_the_text(
    model: PreTrainedModel, kind: str, length: int
) -> None:
    input_ids = seeded_prompt(length, length)
    assert_assisted_equals_greedy(model, input_ids, {"assistant_model": assistant(kind)})


@pytest.mark.parametrize("seed", mostly_long(range(12), 0, 1, 2, 3))
def test_looking_up_guesses_in_the_prompt_does_not_change_the_text(
    model: PreTrainedModel, seed: int
) -> None:
    input_ids = seeded_prompt(seed, 3 + seed).repeat(1, 1 + seed % 3)
    looked_up = {"prompt_lookup_num_tokens": 3 + seed % 8, "max_matching_ngram_size": 1}
    assert_assisted_equals_greedy(model, input_ids, looked_up)


def test_assisted_decoding_leaves_the_cache_that_greedy_decoding_leaves(
    model: PreTrainedModel,
) -> None:
    greedy, assisted = assert_assisted_equals_greedy(
        model, seeded_prompt(0, 20), {"assistant_model": assistant("cousin")}
    )
    expected, actual = greedy.past_key_values, assisted.past_key_values
    assert actual.get_seq_length() == expected.get_seq_length() == 20 + NEW - 1
    for layer in range(4):
        assert actual.window_length(layer) == expected.window_length(layer)
        pairs = [(actual.window_keys(layer), expected.window_keys(layer))]
        if layer in ENTRY.memory_layers:
            pairs.append((actual.memory_values(layer), expected.memory_values(layer)))
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_an_assistant_does_not_change_what_is_said_about_a_document(model: PreTrainedModel) -> None:
    document = longfocus.read_document(model, None, torch.arange(3, 40), "numbers")
    assert_assisted_equals_greedy(
        model,
        seeded_prompt(1, 5),
        {"assistant_model": assistant("cousin")},
        past_key_values=lambda m: longfocus.FocusCache(m, documents=[document]),
    )


def test_an_assistant_may_have_a_memory_itself(model: PreTrainedModel) -> None:
    guesser = attached(Family(ENTRY.name, ENTRY.model_type, ENTRY.settings, (2,)))
    guesser.generation_config.num_assistant_tokens = 4
    guesser.generation_config.num_assistant_tokens_schedule = "constant"
    assert_assisted_equals_greedy(model, seeded_prompt(2, 20), {"assistant_model": guesser})


@pytest.mark.parametrize(
    "settings",
    [{"positions": "none"}, {"search": "exact", "top_k": 5}, {"memory_dtype": "bfloat16"}],
    ids=str,
)
def test_an_assistant_changes_no_setting_of_the_memory(settings: dict[str, Any]) -> None:
    lookup = {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 1}
    model = attached(ENTRY, **settings)
    assert_assisted_equals_greedy(model, seeded_prompt(3, 10).repeat(1, 2), lookup)
