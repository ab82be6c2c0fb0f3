"""The dictionary lookup task is the paper's: format, labels, distinct keys, whole windows, fixed by its seed."""

import pytest
import torch

from longfocus.core import dictionary_task as task
from longfocus.core.labels import NO_LOSS
from longfocus.errors import LongFocusError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_record_is_mark_key_mark_value() -> None:
    records = task.Records(
        torch.tensor([[0, 1, 2, 59]]).byte(), torch.tensor([[5, 5, 6, 7]]).byte()
    )
    assert task.to_tokens(records, task.KEY_MARK).tolist() == [[0, 4, 5, 6, 63, 1, 9, 9, 10, 11]]
    assert task.to_tokens(records, task.QUESTION_MARK)[0, 0] == task.QUESTION_MARK


def test_memory_of_any_length_has_whole_windows_of_25_records_and_6_pads() -> None:
    memory = task.draw_memory(1000, seed=3)
    windows = task.memory_windows(memory, 0, 4)
    assert windows.shape == (4, 256)
    assert len(memory.keys) == 100
    assert (windows[:, 250:] == task.PAD).all()
    assert (windows[:, 0:250:10] == task.KEY_MARK).all()


def test_chunks_of_a_memory_are_the_whole_memory() -> None:
    memory = task.draw_memory(2048, seed=3)
    chunks = [task.memory_windows(memory, first, min(8, first + 3)) for first in range(0, 8, 3)]
    assert torch.equal(torch.cat(chunks), task.memory_windows(memory, 0, 8))


def test_same_seed_gives_the_same_memory_and_another_seed_does_not() -> None:
    first, again, other = (task.draw_memory(5000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.keys, again.keys)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.keys, other.keys)


def test_key_that_occurs_twice_is_ambiguous_and_no_other() -> None:
    keys = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 5]]).byte()
    assert task.is_ambiguous(keys).tolist() == [True, False, True, False]


@pytest.mark.parametrize("alphabet", [6, 12, 60])
def test_hard_keys_are_distinct_and_use_few_symbols_per_place(alphabet: int) -> None:
    keys = task.draw_distinct_keys(800, alphabet, generator())
    assert len(task.key_codes(keys).unique()) == 800
    assert all(len(keys[:, place].unique()) <= alphabet for place in range(4))
    assert int(keys.max()) < task.SYMBOLS


def test_too_many_keys_for_an_alphabet_are_refused() -> None:
    with pytest.raises(LongFocusError, match="do not fit an alphabet of 3 symbols, which makes 81"):
        task.draw_distinct_keys(82, 3, generator())


def test_current_window_asks_every_record_of_its_document_once() -> None:
    batch = task.training_batch(5, 2, 25, 60, generator())
    previous, current = batch.input_ids[:5], batch.input_ids[5:]
    assert current.shape == (2, 256)
    for document in range(2):
        defined = previous[document, :250].view(25, 10)[:, 1:]
        asked = current[document, :250].view(25, 10)[:, 1:]
        assert sorted(defined.tolist()) == sorted(asked.tolist())


def test_only_the_answers_are_labelled() -> None:
    batch = task.training_batch(4, 4, 3, 60, generator())
    assert batch.input_ids.shape == (8, 30)
    assert (batch.labels[:4] == NO_LOSS).all()
    labelled = (batch.labels[4:] != NO_LOSS).view(4, 3, 10)
    assert labelled[..., 6:].all()
    assert not labelled[..., :6].any()
    chosen = batch.labels != NO_LOSS
    assert torch.equal(batch.labels[chosen], batch.input_ids[chosen])
