"""Keep freed memory in the process: training steps on Linux take about half the time.

By default glibc gives every large freed tensor back to the kernel, which must clear the pages again for the next
step. Nothing happens on other systems.
"""

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TWO_GIGABYTES = 2**31 - 1
_QUARTER_GIGABYTE = 2**28


def keep_freed_memory() -> bool:
    """Change malloc of this process; True if that was possible. Best called before large tensors are made."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _TWO_GIGABYTES), (_TOP_PAD, _QUARTER_GIGABYTE))
    return all(mallopt(name, value) == 1 for name, value in settings)
