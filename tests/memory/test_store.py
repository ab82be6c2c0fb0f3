"""A growing memory keeps what it was given, shares what is equal, and refuses what would spoil it."""

import pytest
import torch
from torch import Tensor

from longfocus import LongFocusError
from longfocus.memory import Part, Store

KV_HEADS, DIM = 2, 4


def pairs(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(rows, KV_HEADS, tokens, DIM) for _ in range(2))
    return key, value


def seen_by(store: Store, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and valid bits of all pairs that a batch row sees."""
    found = [(part, owner(part, row)) for part in store.parts()]
    key = torch.cat([part.key[line] for part, line in found], 1)
    value = torch.cat([part.value[line] for part, line in found], 1)
    real = [
        torch.ones(len(part)).bool() if part.valid is None else part.valid[line]
        for part, line in found
    ]
    return key, value, torch.cat(real)


def owner(part: Part, row: int) -> int:
    assert part.rows is not None
    return part.rows[row]


def filled(rows: int = 2, sizes: tuple[int, ...] = (3, 1, 9)) -> tuple[Store, Tensor, Tensor]:
    """A store after several appends, and all keys and values that went in."""
    store, given = Store(), [pairs(rows, size) for size in sizes]
    for key, value in given:
        store.append(key, value)
    key, value = (torch.cat(tensors, 2) for tensors in zip(*given, strict=True))
    return store, key, value


def addresses(store: Store) -> list[int]:
    return [tensor.data_ptr() for part in store.parts() for tensor in (part.key, part.value)]


def test_a_new_store_is_empty() -> None:
    store = Store()
    assert len(store) == store.nbytes() == len(store.parts()) == 0


def test_growing_keeps_the_contents_in_order() -> None:
    store, key, value = filled(sizes=(3, 1, 9, 30, 2, 1, 1, 1))
    assert len(store) == 48
    assert len(store.parts()) == 1
    for row in range(2):
        assert seen_by(store, row)[0].equal(key[row])
        assert seen_by(store, row)[1].equal(value[row])
    assert store.nbytes() == key.nbytes + value.nbytes


def test_growing_copies_old_pairs_a_few_times_only() -> None:
    store = Store()
    moves, before = 0, None
    for _ in range(300):
        store.append(*pairs(1, 1))
        now = addresses(store)
        moves, before = moves + (now != before), now
    assert moves <= 10


def test_what_was_appended_may_be_changed_afterwards() -> None:
    store = Store()
    key, value = pairs(2, 5)
    store.append(key, value)
    kept = key.clone()
    key.zero_()
    value.zero_()
    assert seen_by(store, 0)[0].equal(kept[0])


def test_valid_bits_may_come_late_and_stay_with_their_pairs() -> None:
    store = Store()
    store.append(*pairs(2, 3))
    bits = torch.tensor([[False, True], [True, True]])
    store.append(*pairs(2, 2), bits)
    store.append(*pairs(2, 40))
    store.append(*pairs(2, 2), ~bits)
    assert len(store.parts()) == 1
    expected = torch.cat([torch.ones(2, 3).bool(), bits, torch.ones(2, 40).bool(), ~bits], 1)
    for row in range(2):
        assert seen_by(store, row)[2].equal(expected[row])


def test_pairs_that_are_all_real_need_no_valid_bits() -> None:
    store = Store()
    store.append(*pairs(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert store.parts()[0].valid is None


@pytest.mark.parametrize("size", [1, 4, 30])
def test_taking_back_an_append_leaves_what_was_there_before(size: int) -> None:
    store, key, value = filled()
    store.append(*pairs(2, size), torch.arange(size).expand(2, -1) > 0)
    store.undo_append()
    assert len(store) == 13
    store.append(*(late := pairs(2, 2)))
    for row in range(2):
        assert seen_by(store, row)[0].equal(torch.cat([key, late[0]], 2)[row])
        assert seen_by(store, row)[1].equal(torch.cat([value, late[1]], 2)[row])
        assert seen_by(store, row)[2].all()


def test_the_first_append_can_be_taken_back() -> None:
    store = Store()
    store.append(*pairs(2, 3))
    store.undo_append()
    assert len(store) == len(store.parts()) == 0


def test_an_append_that_began_a_block_can_be_taken_back() -> None:
    store, key, _ = filled()
    store.append(*pairs(2, 3), lines=(0, 0))
    assert len(store.parts()) == 2
    store.undo_append()
    assert seen_by(store, 1)[0].equal(key[1])
    store.append(*(tensor.requires_grad_() for tensor in pairs(2, 3)))
    store.undo_append()
    assert seen_by(store, 1)[0].equal(key[1])


def test_only_the_latest_append_can_be_taken_back() -> None:
    store, *_ = filled()
    store.undo_append()
    with pytest.raises(AssertionError, match="nothing to undo"):
        store.undo_append()
    store.append(*pairs(2, 1))
    store.select([1, 0])
    with pytest.raises(AssertionError, match="nothing to undo"):
        store.undo_append()


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 2], [0], [2, 1], [0, 0, 1, 1, 2, 2]])
def test_selecting_rows_copies_no_pairs(rows: list[int]) -> None:
    store, key, value = filled(rows=3)
    before = addresses(store)
    store.select(rows)
    assert addresses(store) == before
    for place, row in enumerate(rows):
        assert seen_by(store, place)[0].equal(key[row])
        assert seen_by(store, place)[1].equal(value[row])


@pytest.mark.parametrize("first", [[0, 1], [1], [2, 2, 1], [0, 1, 1], [0, 0, 1, 1, 2, 2]])
def test_rows_go_on_growing_after_any_selection(first: list[int]) -> None:
    store, key, _ = filled(rows=3)
    store.select(first)
    more, _ = given = pairs(len(first), 4)
    store.append(*given)
    last = [0] if len(first) == 1 else [1, 0]
    store.select(last)
    for place, row in enumerate(last):
        expected = torch.cat([key[first[row]], more[row]], 1)
        assert seen_by(store, place)[0].equal(expected)


def test_rows_that_separate_and_come_together_keep_their_histories() -> None:
    store, histories = Store(), [[torch.empty(KV_HEADS, 0, DIM)]] * 3
    steps = [((0, 0, 0), [0, 1, 2]), ((0, 1, 2), [1, 1, 0]), ((0, 0, 1), [0, 2, 2])]
    for lines, order in [*steps, ((0, 1, 1), [0, 1, 2]), ((0, 1, 1), [2, 0, 1])]:
        key, value = pairs(max(lines) + 1, 3)
        own = list(lines)
        store.append(key[own], value[own], lines=lines)
        histories = [[*history, key[line]] for history, line in zip(histories, lines, strict=True)]
        store.select(order)
        histories = [histories[row] for row in order]
    for row, history in enumerate(histories):
        assert seen_by(store, row)[0].equal(torch.cat(history, 1))


def test_rows_of_one_history_are_stored_once() -> None:
    store = Store()
    key, value = pairs(2, 5)
    real = torch.tensor([[True] * 5, [False] + [True] * 4])
    own = [0, 0, 0, 1]
    store.append(key[own], value[own], real[own], lines=(0, 0, 0, 1))
    (part,) = store.parts()
    assert part.key.shape[0] == 2
    assert part.rows == (0, 0, 0, 1)
    assert part.valid is not None
    assert part.valid.equal(real)
    assert seen_by(store, 3)[1][:, 1:].equal(value[1, :, 1:])
    store.append(key[own], value[own], lines=(0, 0, 0, 1))
    assert len(store.parts()) == 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
def test_pairs_that_are_not_finite_are_refused_and_change_nothing(
    which: int, poison: float
) -> None:
    store, key, value = filled()
    spoilt = pairs(2, 3)
    spoilt[which][1, 0, 2, 1] = poison
    for valid in (None, torch.tensor([[False, True, True], [True, True, True]])):
        with pytest.raises(LongFocusError, match="NaN or infinite"):
            store.append(*spoilt, valid)
    assert len(store) == 13
    assert seen_by(store, 1)[0].equal(key[1])
    assert seen_by(store, 1)[1].equal(value[1])


def test_a_number_that_overflows_in_the_memory_type_is_refused() -> None:
    store = Store(torch.float16)
    key, value = pairs(1, 2)
    key[0, 0, 0, 0] = 1e6
    with pytest.raises(LongFocusError, match="float16 overflows"):
        store.append(key, value)


@pytest.mark.parametrize("wants_gradients", [False, True])
def test_padding_that_is_not_finite_is_taken_and_never_reaches_an_answer(
    wants_gradients: bool,
) -> None:
    store, (key, value) = Store(), pairs(2, 4)
    key[1, :, 0], value[1, :, 0] = float("nan"), float("inf")
    real = torch.tensor([[True] * 4, [False] + [True] * 3])
    store.append(key.requires_grad_(wants_gradients), value, real)
    (part,) = store.parts()
    output, lse = part.attend(torch.randn(2, 4, 3, DIM), scale=0.5)
    assert output.isfinite().all()
    assert lse.isfinite().all()


def test_pairs_that_carry_a_gradient_keep_it_and_later_ones_do_not_disturb_it() -> None:
    store = Store()
    store.append(*pairs(2, 3))
    key, value = (tensor.requires_grad_() for tensor in pairs(2, 4))
    store.append(key, value)
    with torch.no_grad():
        store.append(*pairs(2, 5))
    assert [len(part) for part in store.parts()] == [3, 4, 5]
    seen_by(store, 1)[0].sum().backward()
    assert key.grad is not None
    assert key.grad[1].eq(1).all()
    assert key.grad[0].eq(0).all()


def test_only_values_may_carry_a_gradient_too() -> None:
    store = Store()
    key, value = pairs(2, 4)
    store.append(key, value.requires_grad_())
    with torch.no_grad():
        store.append(*pairs(2, 5))
    seen_by(store, 0)[1].sum().backward()
    assert value.grad is not None
    assert value.grad[0].eq(1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, None])
def test_pairs_are_kept_in_the_type_of_the_memory(dtype: torch.dtype | None) -> None:
    store, (key, value) = Store(dtype), pairs(2, 3)
    store.append(key, value)
    (part,) = store.parts()
    assert part.key.dtype == part.value.dtype == (dtype or torch.float32)
    assert part.key.equal(key.to(dtype or torch.float32))
    assert store.nbytes() == 2 * key.numel() * part.key.element_size()


def test_truncating_keeps_the_first_pairs_and_growing_goes_on_behind_them() -> None:
    store, key, _ = filled()
    store.truncate(5)
    store.append(*(late := pairs(2, 4)))
    assert seen_by(store, 0)[0].equal(torch.cat([key[:, :, :5], late[0]], 2)[0])
