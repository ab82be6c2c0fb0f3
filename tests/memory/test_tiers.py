"""Tiers: pairs in RAM while a budget lasts, then on files; the same answers from both."""

import errno
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longfocus import LongFocusError
from longfocus.core.runs import Runs
from longfocus.memory import Store, dense, tiers
from longfocus.memory.clustered import Clustered
from longfocus.memory.sorting import cluster
from longfocus.memory.tiers import Rooms, SpilledPairs, joined

CPU = torch.device("cpu")


def pairs(tokens: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(rows, 2, tokens, 8) for _ in range(2))
    return key, value


def test_a_budget_counts_what_lives(tmp_path: Path) -> None:
    rooms = Rooms(1000, tmp_path)
    first = rooms.allocate((100,), torch.float32, CPU)
    assert (rooms.in_ram, rooms.on_disk) == (400, 0)
    second = rooms.allocate((200,), torch.float32, CPU)
    assert (rooms.in_ram, rooms.on_disk) == (400, 800)
    part = first[10:20]
    del first
    gc.collect()
    # a view holds all of it
    assert rooms.in_ram == 400
    del part, second
    gc.collect()
    assert (rooms.in_ram, rooms.on_disk) == (0, 0)
    third = rooms.allocate((250,), torch.float32, CPU)
    assert (rooms.in_ram, rooms.on_disk) == (1000, 0)
    assert len(third) == 250


def test_what_is_on_a_file_can_be_written_and_has_no_name(tmp_path: Path) -> None:
    rooms = Rooms(0, tmp_path)
    made = rooms.allocate((3, 5), torch.bfloat16, CPU)
    made.copy_(torch.arange(15).view(3, 5))
    assert made.sum() == 105
    assert list(tmp_path.iterdir()) == []
    assert rooms.allocate((0, 5), torch.int8, CPU).shape == (0, 5)


def test_no_budget_is_plain_memory() -> None:
    rooms = Rooms()
    rooms.allocate((100,), torch.float32, CPU)
    assert (rooms.in_ram, rooms.on_disk) == (0, 0)


@pytest.mark.parametrize("budget", [-1, True])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: int, tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match="number of bytes"):
        Rooms(budget, tmp_path)


def test_a_missing_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match="no folder"):
        Rooms(100, tmp_path / "missing")


def fill(store: Store, sizes: list[int]) -> Store:
    torch.manual_seed(1)
    for tokens in sizes:
        store.append(*pairs(tokens))
    return store


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("is_clustered", [False, True])
def test_every_tier_gives_the_same_bits(
    dtype: torch.dtype | None,
    is_clustered: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 64)
    rooms = [Rooms(), Rooms(10_000, tmp_path), Rooms(0, tmp_path)]
    stores = [
        fill(Store(dtype, is_clustered=is_clustered, allocate=each.allocate), [40, 60, 30, 90, 10])
        for each in rooms
    ]
    assert rooms[1].on_disk > 0
    assert rooms[2].in_ram == 0
    query = torch.randn(1, 4, 3, 8)
    answers = [dense(query, store.parts(), scale=0.5) for store in stores]
    answers += [Clustered()(query, store.parts(), scale=0.5) for store in stores]
    for half in (answers[:3], answers[3:]):
        for other in half[1:]:
            assert other.output.equal(half[0].output)
            assert other.lse.equal(half[0].lse)


def test_sorted_pairs_on_a_file_are_loaded_as_they_are_visited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms, loaded = Rooms(0, tmp_path), []
    fetch = SpilledPairs.fetch

    def noting(self: SpilledPairs, line: int, kv_head: int, runs: Runs) -> None:
        loaded.append((line, kv_head))
        fetch(self, line, kv_head, runs)

    monkeypatch.setattr(SpilledPairs, "fetch", noting)
    (part,) = fill(Store(), [5000]).parts()
    on_file = cluster(part, 64, rooms.allocate)
    in_ram = cluster(part, 64)
    assert isinstance(on_file.file, SpilledPairs)
    assert in_ram.file is None
    query = 4 * torch.randn(1, 4, 6, 8)
    search = Clustered(0.5)
    found = search(query, [on_file], scale=1.0)
    assert {head for _, head in loaded} == {0, 1}
    expected = Clustered(0.5)(query, [in_ram], scale=1.0)
    assert found.output.equal(expected.output)


@pytest.mark.parametrize(("tokens", "is_announced"), [(1, True), (4, True), (5, False)])
def test_what_a_token_will_visit_is_announced_for_all_heads_before_any_is_visited(
    tokens: int, is_announced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("announce", "fetch"):
        own = getattr(SpilledPairs, name)

        def noting(
            self: Any, line: int, head: int, runs: Runs, own: Any = own, name: str = name
        ) -> None:
            calls.append((name, head))
            own(self, line, head, runs)

        monkeypatch.setattr(SpilledPairs, name, noting)
    (part,) = fill(Store(), [5000]).parts()
    on_file = cluster(part, 128, Rooms(0, tmp_path).allocate)
    query = torch.randn(1, 4, tokens, 8)
    found = Clustered(0.5)(query, [on_file], scale=1.0)
    first = [("announce", 0), ("announce", 1), ("fetch", 0)]
    assert (calls[:3] == first) == is_announced
    assert ("fetch", 1) in calls
    assert found.output.equal(Clustered(0.5)(query, [cluster(part, 128)], scale=1.0).output)


def test_runs_that_nearly_touch_are_loaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "GAP_BYTES", 10)
    starts, stops = torch.tensor([50, 0, 7, 20, 9]), torch.tensor([60, 5, 7, 30, 12])
    runs = Runs(starts, stops, torch.arange(6))
    # 5..9 and 12..20 are gaps of 8 and 16 bytes
    assert joined(runs, 2) == [(0, 24), (40, 60), (100, 120)]


def test_a_full_disk_is_told_and_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms(20_000, tmp_path)
    store = fill(Store(allocate=rooms.allocate), [50])
    before = [part.key.clone() for part in store.parts()]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LongFocusError, match="No space left") as refused:
        store.append(*pairs(500))
    assert str(tmp_path) in str(refused.value)
    assert next(iter(store.parts())).key.equal(before[0])
    assert len(store) == 50
    monkeypatch.undo()
    store.append(*pairs(500))
    assert len(store) == 550
