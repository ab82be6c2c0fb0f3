"""The processes that train together, one model each (torchrun starts them): where they meet, and how they end.

    rank 0   output |meet| tokens, model |meet| steps |meet| the model is saved |meet| leave
    rank 1          |meet| tokens, model |meet| steps |meet|                    |meet| leave

Where they meet they tell each other whether they can go on. If one cannot, all stop: the first such process raises its
own error, every other one `StoppedElsewhere` with the same words. A process that fails between two meetings ends, and
the others, which find it gone, stop too.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import distributed

from longfocus.errors import LongFocusError

Made = TypeVar("Made")


class Processes(NamedTuple):
    """Which of the processes this one is."""

    rank: int
    count: int


class StoppedElsewhere(LongFocusError):
    """Another process of this training cannot go on, and says why itself."""


def meet(error: Exception | None = None) -> None:
    """Wait for all processes, and raise unless every one can go on; `error` is why this one cannot.

    Every process must come to the same meetings. With one process it raises the error, if there is one.
    """
    rank, told = 0, [_words(error)]
    if _are_several():
        rank, told = distributed.get_rank(), [None] * distributed.get_world_size()
        distributed.all_gather_object(told, _words(error))
    first = next((number for number, words in enumerate(told) if words is not None), None)
    if first is None:
        return
    if first == rank and error is not None:
        raise error
    raise StoppedElsewhere(told[first]) from error


def together(do: Callable[[], Made]) -> Made:
    """What `do` gives, once all processes have done it; `do` holds no meeting."""
    made: Any = None
    error = None
    try:
        made = do()
    except Exception as raised:
        error = raised
    meet(error)
    return made


def first(do: Callable[[], Made]) -> Made:
    """What `do` gives, done by the first process before all others."""
    if not _are_several():
        return do()
    if distributed.get_rank() == 0:
        made = together(do)
        meet()
        return made
    meet()
    return together(do)


@contextmanager
def stopping_together() -> Iterator[None]:
    """Inside, a process that finds another one gone raises StoppedElsewhere."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no error of its own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise StoppedElsewhere(
            f"Another process of this training is gone. Got: {error} All processes must train to the end. See what "
            "that one said; the same command goes on from the last good checkpoint."
        ) from error


def leave() -> None:
    """Leave the group of processes and end its threads; nothing is exchanged any more.

    A thread that frees a tensor while the interpreter ends aborts the process. The group ends its threads when nobody
    holds it any more, and a trainer does, in a circle of references that only the garbage collector frees. That comes
    first: the collector would keep the lock that threads need to end, torch's own last reference does not.
    """
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def _are_several() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _words(error: Exception | None) -> str | None:
    if error is None or isinstance(error, LongFocusError):
        return None if error is None else str(error)
    return f"{type(error).__name__}: {error}"
