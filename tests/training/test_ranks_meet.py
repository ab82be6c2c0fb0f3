"""What a process does after a meeting, by what the others said there; real processes are in test_ranks_end.py."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from longfocus.errors import LongFocusError
from longfocus.training import ranks
from longfocus.training.ranks import StoppedElsewhere, first, meet, stopping_together, together

Meetings = list[list[str | None]]


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Meetings], None]:
    """Makes this process number `rank` of three; the others say what is listed for each meeting."""

    def make(rank: int, meetings: Meetings) -> None:
        def gather(told: list[str | None], own: str | None) -> None:
            told[:] = meetings.pop(0)
            told[rank] = own

        group = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_world_size=lambda: 3,
            get_rank=lambda: rank,
            all_gather_object=gather,
        )
        monkeypatch.setattr(ranks, "distributed", group)

    return make


def fail() -> None:
    raise KeyError("own")


def test_alone_an_error_is_raised_as_it_is() -> None:
    meet()
    assert together(lambda: 1) == first(lambda: 1) == 1
    for do in (together, first):
        with pytest.raises(KeyError, match="own"):
            do(fail)


def test_where_all_can_go_on_they_do(among: Callable[[int, Meetings], None]) -> None:
    for rank in range(3):
        among(rank, [[None] * 3] * 2)
        assert together(lambda: 1) == 1
        meet()


@pytest.mark.parametrize("rank", [0, 2])
def test_the_error_of_another_process_stops_this_one_with_its_words(
    rank: int, among: Callable[[int, Meetings], None]
) -> None:
    done = []
    among(rank, [[None, "why", None]])
    with pytest.raises(StoppedElsewhere, match=r"^why$"):
        together(lambda: done.append(rank))
    assert done == [rank]


@pytest.mark.parametrize(("rank", "kind"), [(0, KeyError), (1, StoppedElsewhere)])
def test_of_several_errors_the_first_process_raises_its_own(
    rank: int, kind: type[Exception], among: Callable[[int, Meetings], None]
) -> None:
    among(rank, [["KeyError: 'own'", None, "another"]])
    with pytest.raises(kind, match="own"):
        together(fail)


@pytest.mark.parametrize(("rank", "meetings_to_come"), [(0, 2), (1, 1), (2, 1)])
def test_the_first_process_comes_before_all_others(
    rank: int, meetings_to_come: int, among: Callable[[int, Meetings], None]
) -> None:
    meetings: Meetings = [[None] * 3] * 2
    among(rank, meetings)
    assert first(lambda: len(meetings)) == meetings_to_come
    assert not meetings


def test_what_the_first_process_cannot_do_the_others_do_not_try(
    among: Callable[[int, Meetings], None],
) -> None:
    among(1, [["why", None, None]])
    with pytest.raises(StoppedElsewhere, match="why"):
        first(fail)


def test_a_lost_connection_is_another_process_that_is_gone() -> None:
    lost = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    with (
        pytest.raises(StoppedElsewhere, match="process of this training is gone"),
        stopping_together(),
    ):
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="out of memory"), stopping_together():
        raise RuntimeError("out of memory")
    assert issubclass(StoppedElsewhere, LongFocusError)
