"""What the run was made on, and how fast it can read its memory at all."""

import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from longfocus.core.processor import memory_bytes

PACKAGES = (
    "longfocus",
    "torch",
    "transformers",
    "numpy",
    "faiss-cpu",
    "bm25s",
    "memorizing-transformers-pytorch",
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return memory_bytes()


def seconds_to_read(nbytes: int, repetitions: int = 5) -> float:
    """Median time in which torch adds up so many bytes of float32: no search can look at them faster."""
    numbers = torch.ones(max(nbytes // 4, 1))
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        numbers.sum()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
