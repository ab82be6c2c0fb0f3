"""A process that dies at a chosen call of the system: before it, or in the middle of a write."""

import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

KILLED, FAILED = 77, 78
CALLS = (
    "open",
    "write",
    "ftruncate",
    "lseek",
    "fsync",
    "link",
    "rename",
    "replace",
    "unlink",
    "close",
    "mkdir",
)


def ends_when_killed_at(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in another process that dies at its call `number` of the system; whether it came to its end."""
    with warnings.catch_warnings():
        # Python warns of the idle threads of torch, which a tiny document does not wake
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _die_at(number)
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), code
    return code == 0


def _die_at(number: int) -> None:
    """Let this process die at its call `number` from now on."""
    made = 0

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                if name == "write":
                    # half of it got out
                    call(given[0], given[1][: len(given[1]) // 2])
                os._exit(KILLED)
            return call(*given, **named)

        return counted

    for name in CALLS:
        setattr(os, name, dying(name, getattr(os, name)))
