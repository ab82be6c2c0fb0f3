"""Ctrl-C and termination that wait for the end of a training step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Inside, SIGINT and SIGTERM are only noted, so that a step is never cut in two: the yielded function tells which.

    A second one is not waited for: it acts as it did before.
    """
    received: list[int] = []
    previous = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
