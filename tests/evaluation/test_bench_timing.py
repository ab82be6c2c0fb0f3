"""Repetitions take turns, what takes too long is not measured, growth is a slope, and nothing is projected."""

import math

import pytest

from longfocus.evaluation.speed.pairs import pair, short
from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.timing import (
    Clock,
    Contestant,
    Timing,
    exponent,
    least_seconds,
    race,
)


def test_contestants_take_turns_and_medians_are_taken() -> None:
    order: list[str] = []
    seconds = {"ours": iter([1.0, 5.0, 2.0]), "peer": iter([8.0, 4.0, 6.0])}

    def contestant(name: str) -> Contestant:
        def run(clock: Clock) -> float:
            order.append(name)
            return next(seconds[name])

        return Contestant(run)

    found = race({name: contestant(name) for name in seconds}, repetitions=3)
    assert order == ["ours", "peer"] * 3
    assert (found["ours"].median, found["peer"].median) == (2.0, 6.0)


def test_a_repetition_over_the_limit_is_stopped_and_not_measured() -> None:
    runs = []

    def slow(clock: Clock) -> None:
        runs.append(1)
        while True:
            clock.check()

    found = race(
        {"ours": Contestant(lambda clock: 1.0), "peer": Contestant(slow, limit=0.01)}, repetitions=3
    )
    assert len(runs) == 1
    assert found["peer"] == Timing((), "one repetition takes more than 0.01 s")
    row = pair(Row(what="reading", model="m", tokens=64, ours="ours", peer="peer", key="k"), found)
    assert row.peer_seconds is row.ratio is None
    assert row.ours_seconds == 1.0
    assert row.note == "peer not measured: one repetition takes more than 0.01 s"


def test_who_is_known_to_take_too_long_does_not_start() -> None:
    def never(clock: Clock) -> None:
        pytest.fail("it was run")

    assert race({"peer": Contestant(never, "it needs 900 GiB")}, 2)["peer"].why_not


def test_someone_who_has_run_long_enough_is_not_repeated() -> None:
    found = race({"peer": Contestant(lambda clock: 50.0)}, repetitions=5)
    assert found["peer"].seconds == (50.0, 50.0, 50.0)


@pytest.mark.parametrize("power", [1.0, 1.25, 2.0])
def test_the_exponent_is_the_slope_on_logarithmic_axes(power: float) -> None:
    def seconds(tokens: int) -> float:
        return 0.003 * tokens**power

    found = exponent((4096, seconds(4096)), (262144, seconds(262144)))
    assert found == pytest.approx(power)


def test_the_least_time_of_a_longer_reading_is_below_any_that_is_at_least_linear() -> None:
    def seconds(tokens: int) -> float:
        return 0.001 * tokens + 2e-8 * tokens**2

    before = [(n, seconds(n)) for n in (4096, 16384, 65536)]
    for known in (before[:1], before[:2], before):
        for tokens in (262144, 1048576):
            assert 0 < least_seconds(known, tokens) <= seconds(tokens)
    assert least_seconds([], 4096) == 0.0
    assert least_seconds([(4096, 1.0), (16384, math.inf)], 65536) == math.inf
    # noise may make a longer reading look cheaper per token
    assert least_seconds([(4096, 1.0), (16384, 1.0)], 65536) == 4.0
    # a longer one says nothing of a shorter one
    assert least_seconds([(65536, math.inf), (4096, 1.0)], 16384) == 4.0


def test_ratios_are_theirs_by_ours_or_the_other_way_round_where_it_says_so() -> None:
    timings = {"ours": Timing((2.0,)), "peer": Timing((6.0, 10.0, 8.0))}
    row = Row(what="decoding", model="m", tokens=1, ours="ours", peer="peer")
    assert pair(row, timings).ratio == 4.0
    assert pair(row, timings, is_inverse=True).ratio == 0.25
    assert pair(row, timings).repetitions == 1


def test_lengths_are_named_briefly() -> None:
    names = [short(n) for n in (4096, 65536, 1048576, 16777216, 300)]
    assert names == ["4k", "64k", "1m", "16m", "300"]
