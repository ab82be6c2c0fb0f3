"""How long `longfocus --help` takes beside a Python process that does nothing.

Run: python benchmarks/help_time.py [runs]

The two take turns, so that other work on the machine slows both; the medians are compared.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "longfocus --help": [sys.executable, "-m", "longfocus", "--help"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(runs: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    plain, longfocus = (statistics.median(taken) for taken in times.values())
    for name, taken in times.items():
        print(f"{name:<18} {1000 * statistics.median(taken):6.1f} ms")
    print(f"{'ratio':<18} {longfocus / plain:6.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
