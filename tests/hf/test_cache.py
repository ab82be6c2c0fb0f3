"""FocusCache: rows change places, tokens are taken back, settings differ per cache, and nothing else notices."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from attached import WINDOW, attached, starts_of, text
from generation import ENTRY, GREEDY, TOLERANCE, assert_close, prompt
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import Family, family, tiny_model
from long import mostly_long
from oracle import Memory, oracle_logits

# none, more than a window, and part of the last window
PADDING = (0, 16, 37)
MORE = WINDOW + 3


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return attached(ENTRY)


def read(
    model: PreTrainedModel, length: int = 40, padding: tuple[int, ...] = PADDING
) -> tuple[longfocus.FocusCache, Tensor]:
    """A cache that has read a random text, and the mask of that text."""
    input_ids, mask = text(length, padding)
    cache = longfocus.FocusCache(model)
    with torch.no_grad():
        model(input_ids, attention_mask=mask, past_key_values=cache)
    return cache, mask


def go_on(model: PreTrainedModel, cache: Any, mask: Tensor, seed: int = MORE) -> Tensor:
    """Logits of MORE tokens, the same for every row: they fill the window and evict it."""
    row = text(seed, (0,))[0][:, :MORE]
    input_ids = row.expand(len(mask), -1)
    longer = torch.nn.functional.pad(mask, (0, MORE), value=1)
    with torch.no_grad():
        return model(input_ids, attention_mask=longer, past_key_values=cache).logits


def counts(cache: longfocus.FocusCache) -> list[tuple[int, int]]:
    """What a cache holds, per layer."""
    return [(cache.window_length(i), cache.memory_length(i)) for i in range(4)]


@pytest.mark.parametrize(
    "rows",
    [torch.tensor([2, 0]), torch.tensor([1, 1, 0, 2]), torch.tensor([True, False, True])],
    ids=["fewer", "repeated", "marked"],
)
def test_selected_rows_go_on_as_if_they_had_been_alone(
    model: PreTrainedModel, rows: Tensor
) -> None:
    cache, mask = read(model)
    expected = go_on(model, read(model)[0], mask)[rows]
    cache.batch_select_indices(rows)
    assert cache.rows == len(expected)
    assert_close(go_on(model, cache, mask[rows]), expected)


def test_repeated_rows_go_on_as_the_rows_that_they_repeat(model: PreTrainedModel) -> None:
    cache, mask = read(model)
    expected = go_on(model, read(model)[0], mask).repeat_interleave(2, 0)
    cache.batch_repeat_interleave(2)
    assert cache.rows == 6
    assert_close(go_on(model, cache, mask.repeat_interleave(2, 0)), expected)


def test_reordering_rows_copies_no_memory(model: PreTrainedModel) -> None:
    cache, mask = read(model)
    expected = go_on(model, read(model)[0], mask)[[1, 2, 1]]
    before = [part.key.data_ptr() for part in cache.layers[1].store.parts()]
    cache.reorder_cache(torch.tensor([1, 2, 1]))
    parts = cache.layers[1].store.parts()
    assert [part.key.data_ptr() for part in parts] == before
    assert [part.rows for part in parts] == [(1, 2, 1)] * len(parts)
    assert_close(go_on(model, cache, mask[[1, 2, 1]]), expected)


def test_padding_is_remembered_with_its_row(model: PreTrainedModel) -> None:
    (cache, mask), rows = read(model), [2, 0, 1]
    cache.reorder_cache(torch.tensor(rows))
    # later calls need not say again what was padding
    model(text(MORE, PADDING)[0], past_key_values=cache)
    assert cache.memory_valid(3)[:, :40].equal(mask[rows].bool())
    assert cache.memory_valid(3)[:, 40:].all()


@pytest.mark.parametrize("removed", [1, 3, 4, 9, 12])
@pytest.mark.parametrize("padding", [(0,), (0, 5)], ids=["full", "padded"])
def test_tokens_taken_back_leave_no_trace(
    model: PreTrainedModel, removed: int, padding: tuple[int, ...]
) -> None:
    # Five tokens stay of the prompt; 8 more fill the window, and the last 4 evict it.
    length, new = 20, 12
    whole = torch.cat([text(length, padding)[0], text(new, (0,) * len(padding))[0]], 1)
    mask = torch.nn.functional.pad(text(length, padding)[1], (0, new), value=1)

    def spoken(tokens: int) -> longfocus.FocusCache:
        cache, _ = read(model, length, padding)
        for stop in range(length + 1, tokens + 1):
            given = {"attention_mask": mask[:, :stop], "past_key_values": cache}
            with torch.no_grad():
                model(whole[:, stop - 1 : stop], **given)
        return cache

    cache, kept = spoken(length + new), length + new - removed
    assert cache.window_length() == 4
    cache.crop(-removed)
    assert cache.get_seq_length() == kept
    expected = spoken(kept)
    assert counts(cache) == counts(expected)
    assert go_on(model, cache, mask[:, :kept]).equal(go_on(model, expected, mask[:, :kept]))
    assert counts(cache) == counts(expected)


def test_taking_back_an_eviction_brings_back_what_was_padding(model: PreTrainedModel) -> None:
    input_ids, mask = text(WINDOW + 2, (0, 5))
    cache = longfocus.FocusCache(model)
    model(input_ids[:, :WINDOW], attention_mask=mask[:, :WINDOW], past_key_values=cache)
    for token in (WINDOW, WINDOW + 1):
        model(input_ids[:, token : token + 1], past_key_values=cache)
    cache.crop(-3)
    # no later call says what was padding
    model(text(MORE)[0], past_key_values=cache)
    valid = cache.memory_valid(3)
    assert valid[:, :WINDOW].equal(mask[:, :WINDOW].bool())
    assert valid[:, WINDOW:].all()


def test_more_than_can_be_taken_back_is_refused_and_nothing_is_lost(
    model: PreTrainedModel,
) -> None:
    cache, mask = read(model, 20, (0, 5))
    twin, _ = read(model, 20, (0, 5))
    for c in (cache, twin):
        go_on(model, c, mask)
    before = counts(cache)
    longer = torch.nn.functional.pad(mask, (0, MORE), value=1)
    for too_many in (-20, -30, -1000):
        with pytest.raises(longfocus.LongFocusError, match=str(-too_many)):
            cache.crop(too_many)
        assert counts(cache) == before
        assert cache.get_seq_length() == 20 + MORE
    assert go_on(model, cache, longer).equal(go_on(model, twin, longer))


def test_the_published_rules_take_nothing_back() -> None:
    cache, _ = read(attached(ENTRY, split="longllama"))
    cache.crop(0)
    with pytest.raises(longfocus.LongFocusError, match="when_needed"):
        cache.crop(-1)
    assert cache.get_seq_length() == 40


def test_a_reset_cache_is_a_new_one_that_keeps_its_documents(model: PreTrainedModel) -> None:
    document = longfocus.read_document(model, None, torch.arange(3, 40), "numbers")
    cache = longfocus.FocusCache(model, documents=[document])
    fresh = longfocus.FocusCache(model, documents=[document])
    assert not longfocus.FocusCache(model).has_memory()
    read_ids, mask = text(40, PADDING)
    model(read_ids, attention_mask=mask, past_key_values=cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.rows, cache.has_memory()) == (0, None, True)
    assert counts(cache) == [(0, 0)] * 4
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert go_on(model, cache, nothing).equal(go_on(model, fresh, nothing))


def test_a_copied_cache_goes_on_by_itself(model: PreTrainedModel) -> None:
    cache, mask = read(model)
    twin = copy.deepcopy(cache)
    first = go_on(model, cache, mask)
    assert twin.get_seq_length() == 40
    assert go_on(model, twin, mask).equal(first)


def test_lengths_count_conversation_tokens_only(model: PreTrainedModel) -> None:
    document = longfocus.read_document(model, None, torch.arange(3, 40), "numbers")
    cache = longfocus.FocusCache(model, documents=[document])
    assert cache.get_seq_length() == 0
    model(text(20)[0], past_key_values=cache)
    assert cache.get_seq_length() == 20
    assert counts(cache) == [(5, 0), (5, 15), (5, 0), (5, 15)]
    model(text(20)[0], past_key_values=cache, use_cache=False)
    assert cache.get_seq_length() == 40
    assert counts(cache) == [(0, 0), (0, 40), (0, 0), (0, 40)]


@pytest.mark.parametrize(
    "settings",
    [
        {"search": "exact", "top_k": 3},
        {"search": "exact", "top_k": 1000},
        {"memory_dtype": "bfloat16"},
        {"search": "exact", "top_k": 5, "memory_dtype": "float16"},
    ],
    ids=str,
)
def test_settings_of_a_cache_act_as_if_the_model_had_them(
    model: PreTrainedModel, settings: dict[str, Any]
) -> None:
    given, before = prompt(40, PADDING), model.focus.config
    cache = longfocus.FocusCache(model, **settings)
    actual = model(**given, past_key_values=cache).logits
    assert actual.equal(attached(ENTRY, **settings)(**given).logits)
    assert model.focus.config is before
    unchanged = model(**given).logits
    assert unchanged.equal(attached(ENTRY)(**given).logits)
    assert settings.get("top_k") == 1000 or not actual.allclose(unchanged, atol=1e-4)


def test_a_memory_in_bfloat16_is_the_oracle_with_rounded_pairs() -> None:
    model = attached(ENTRY, memory_dtype="bfloat16", dtype=torch.float64)
    given = prompt(47, PADDING)
    output = model(**given)
    cache = output.past_key_values
    assert cache.memory_keys(1).dtype == cache.memory_values(3).dtype == torch.bfloat16
    assert cache.window_keys(1).dtype == torch.float64
    assert cache.layers[1].store.nbytes() == 2 * 3 * 2 * cache.memory_length(1) * 10 * 2
    expected = oracle_logits(
        tiny_model(ENTRY, dtype=torch.float64),
        given["input_ids"],
        starts_of(47),
        Memory(ENTRY.memory_layers, dtype=torch.bfloat16),
        attention_mask=given["attention_mask"],
    )
    real = given["attention_mask"].bool()
    # stock norms round to float32, and a few pairs then round to the other neighbour
    torch.testing.assert_close(output.logits[real], expected[real], atol=2e-2, rtol=0)
    assert (output.logits[real] - expected[real]).abs().median() < TOLERANCE


def other_models() -> dict[str, PreTrainedModel]:
    return {
        r"memory layers \[2\]": attached(Family("l", "llama", ENTRY.settings, (2,))),
        "'none'": attached(ENTRY, positions="none"),
        "other settings": attached(family("llama")),
    }


@pytest.mark.parametrize("what", other_models())
def test_a_document_that_another_model_has_read_is_refused_by_name(
    model: PreTrainedModel, what: str
) -> None:
    other = other_models()[what]
    document = longfocus.read_document(other, None, torch.arange(3, 40), "numbers")
    with pytest.raises(longfocus.LongFocusError, match=f"'numbers'.*{what}"):
        longfocus.FocusCache(model, documents=[document])


def test_documents_have_no_place_in_one_stream(model: PreTrainedModel) -> None:
    document = longfocus.read_document(model, None, torch.arange(3, 40), "numbers")
    with pytest.raises(longfocus.LongFocusError, match="'numbers'"):
        longfocus.FocusCache(attached(ENTRY, positions="true"), documents=[document])


def test_a_cache_needs_a_model_with_memory() -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"LlamaForCausalLM.*longfocus\.attach"):
        longfocus.FocusCache(tiny_model(ENTRY))


def test_a_call_that_is_interrupted_leaves_the_window_as_it_was(model: PreTrainedModel) -> None:
    cache, mask = read(model, 20)
    expected, _ = read(model, 20)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(text(1, PADDING)[0], past_key_values=cache)
    handle.remove()
    assert cache.get_seq_length() == 20
    assert go_on(model, cache, mask).equal(go_on(model, expected, mask))


@pytest.mark.parametrize("name", mostly_long(["llama_gqa", "stablelm"], "llama_gqa"))
def test_two_threads_that_share_a_model_do_not_disturb_each_other(name: str) -> None:
    model = attached(family(name))

    def speak(number: int) -> list[Tensor]:
        search = {"search": "exact", "top_k": 3} if number % 2 else {}
        cache = longfocus.FocusCache(model, **search)
        settings = {**GREEDY, "max_new_tokens": 20, "past_key_values": cache}
        output = model.generate(**prompt(15 + number, (0, number)), **settings)
        return [output.sequences, torch.stack(output.logits)]

    alone = [speak(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(speak, range(4)))
    for one, other in zip(alone, together, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
