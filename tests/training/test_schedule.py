"""The d of every step: drawn, switched at a step or at an accuracy, and the same after a restart."""

import json
from collections import Counter

import pytest
import torch

import longfocus
from longfocus.training.schedule import SMOOTHING, Phase, Schedule, parse_schedule


def generator(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def run(schedule: Schedule, steps: range, accuracy: float = 0.0) -> list[int]:
    found = []
    for step in steps:
        found.append(schedule.draw(step, generator(step)))
        schedule.tell(accuracy)
    return found


@pytest.mark.parametrize(
    ("text", "phases"),
    [
        ("2", (Phase((2,)),)),
        (" 2 , 128 ", (Phase((2, 128)),)),
        ("1 until 98% then 128", (Phase((1,), None, 0.98), Phase((128,)))),
        ("1 until .5 then 2", (Phase((1,), None, 0.5), Phase((2,)))),
        ("2 until step 5000 then 2,64", (Phase((2,), 5000), Phase((2, 64)))),
        (
            "1 until step 10 then 2, 3 until 90 % then 4 until step 20 then 5",
            (Phase((1,), 10), Phase((2, 3), None, 0.9), Phase((4,), 20), Phase((5,))),
        ),
    ],
)
def test_a_schedule_is_read_from_its_text(text: str, phases: tuple[Phase, ...]) -> None:
    schedule = parse_schedule(text)
    assert schedule.phases == phases
    assert schedule.largest == max(value for phase in phases for value in phase.values)
    assert schedule.needs_accuracy == any(phase.until_accuracy for phase in phases)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "2,",
        "2.5",
        "²",
        "two",
        "2 then 4",
        "2 until step 10",
        "2 until step 10 then",
        "2 until step then 4",
        "2 until 10 then 4",
        "2 until 0% then 4",
        "2 until 101% then 4",
        "2 until 100% then 4",
        "2 until . then 4",
        "2 until 1.2.3% then 4",
        "2 until step 10 then 4 until step 10 then 8",
        "2 until step 20 then 4 until step 10 then 8",
        "1 then 2 until step 10",
    ],
)
def test_what_is_no_schedule_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(longfocus.LongFocusError, match=r"not a schedule of d\. Allowed") as error:
        parse_schedule(text)
    assert repr(text) in str(error.value)


def test_a_constant_is_always_the_same() -> None:
    assert run(parse_schedule("3"), range(5)) == [3] * 5


def test_several_values_are_drawn_equally_often_by_the_generator_of_the_step() -> None:
    found = run(parse_schedule("2,8,128"), range(600))
    assert all(170 < count < 230 for count in Counter(found).values())
    assert set(found) == {2, 8, 128}
    # a step's own generator decides, not the steps before it
    assert run(parse_schedule("2,8,128"), range(300, 600)) == found[300:]


def test_a_switch_at_a_step_holds_from_that_step_on() -> None:
    text = "1 until step 3 then 2 until step 5 then 4"
    assert run(parse_schedule(text), range(7)) == [1, 1, 1, 2, 2, 4, 4]
    # also where a restart begins behind it
    assert run(parse_schedule(text), range(6, 8)) == [4, 4]


def test_a_switch_at_an_accuracy_waits_for_the_smoothed_one() -> None:
    schedule = parse_schedule("1 until 50% then 9")
    found = run(schedule, range(12), accuracy=1.0)
    # 1 - .9^7 = .52 is the first that is large enough: it is told after step 6
    waited = next(n for n in range(100) if 1 - SMOOTHING**n >= 0.5)
    assert found == [1] * waited + [9] * (12 - waited)
    # and is never taken back
    assert run(schedule, range(12, 15), accuracy=0.0) == [9] * 3


def test_an_accuracy_that_stays_below_never_switches() -> None:
    assert set(run(parse_schedule("1 until 50% then 9"), range(300), accuracy=0.49)) == {1}


def test_every_phase_measures_its_own_accuracy() -> None:
    schedule = parse_schedule("1 until 50% then 2 until 50% then 3")
    waited = next(n for n in range(100) if 1 - SMOOTHING**n >= 0.5)
    found = run(schedule, range(20), accuracy=1.0)
    assert found == [1] * waited + [2] * waited + [3] * (20 - 2 * waited)


@pytest.mark.parametrize("stop", range(0, 30, 3))
def test_a_restored_schedule_goes_on_as_if_never_stopped(stop: int) -> None:
    text = "1 until 50% then 2,3 until step 12 then 4 until 80% then 5,6"
    whole = run(parse_schedule(text), range(40), accuracy=0.9)
    assert {1, 2, 3, 4, 5, 6} == set(whole)
    stopped = parse_schedule(text)
    run(stopped, range(stop), accuracy=0.9)
    state = json.loads(json.dumps(stopped.state_dict()))
    restored = parse_schedule(text)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert run(restored, range(stop, 40), accuracy=0.9) == whole[stop:]
