"""The arithmetic of estimates: bytes from the configuration, seconds from lines between what was measured."""

import pytest
import torch
from benching import SHAPE

import longfocus
from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import estimate as estimates
from longfocus.evaluation.speed import models
from longfocus.evaluation.speed.estimate import Cost, cost_at, reading_seconds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bytes_are_those_of_a_document(dtype: str) -> None:
    model = models.random_model(SHAPE)
    document = longfocus.read_document(model, None, models.random_ids(100, 50)).to(dtype)
    found = estimates.estimate(model, 100, dtype)
    assert found.memory_bytes == document.nbytes
    assert found.dtype == dtype


def test_costs_lie_on_lines_between_what_was_measured() -> None:
    costs = [Cost(0, 1.0), Cost(100, 2.0), Cost(200, 4.0)]
    found = [cost_at(costs, memory) for memory in (0, 50, 100, 150, 200, 300)]
    assert found == [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert cost_at(costs[:1], 5000) == 1.0


def test_reading_adds_up_its_windows() -> None:
    # windows of 10 tokens that cost 1, 2, 3, ... and a half one at the end
    costs = [Cost(0, 1.0), Cost(10, 2.0)]
    assert reading_seconds(costs, 30, window=10) == 1 + 2 + 3
    assert reading_seconds(costs, 35, window=10) == 1 + 2 + 3 + 4 / 2
    assert reading_seconds(costs[:1], 1000, window=10) == 100.0


def test_calibration_finds_the_costs_of_a_made_up_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.random_model(SHAPE)
    # seconds of a window and of a token, by what is in memory
    monkeypatch.setattr(estimates, "_window_seconds", lambda model, memory, window: 7 + memory)
    monkeypatch.setattr(estimates, "_decode_seconds", lambda model, memory, dtype: 2 + memory)
    # the first eight windows
    alone = 8 * 1 + SHAPE.window * 8 * 7 / 2
    monkeypatch.setattr(estimates, "_median", lambda work: alone)
    monkeypatch.setattr(estimates, "MOST_BYTES", 1000 * 256)
    found = estimates.estimate(model, 160_000)
    assert found.decode_seconds == pytest.approx(2 + 160_000)
    assert found.empty_decode_seconds == 2
    windows = 160_000 // SHAPE.window
    expected = windows * 1 + SHAPE.window * windows * (windows - 1) / 2
    assert found.reading_seconds == pytest.approx(expected)


def test_made_up_memories_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "MOST_BYTES", 64 * 256)
    assert estimates._sizes(models.random_model(SHAPE, torch.bfloat16), 10**9) == [8, 32, 64]
    assert estimates._sizes(models.random_model(SHAPE), 1) == [1]


def test_nonsense_is_refused() -> None:
    model = models.random_model(SHAPE, torch.float32)
    with pytest.raises(LongFocusError, match="at least 1"):
        estimates.estimate(model, 0)
    with pytest.raises(LongFocusError, match="Allowed: float32"):
        estimates.estimate(model, 10, "int4")
