"""An evaluation that is killed again and again must end with the records and rows of one that was left alone.

    python benchmarks/evaluation_kills.py [--kills 8] [--seed 0] [--only NAME ...]

Runs `longfocus evaluate` with shipped models on docs/ in processes of their own: once in peace, once with SIGKILL at
random moments, started again until it is finished. Times and memory of the process apart, all must be the same. Exits
with 1 if anything differs.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = "--seeds 1 2 3 4 5 6 7 8"
EXPERIMENTS = {
    "dictionary": f"--model dictionary --tokens 1K 2K --questions 25 --whole-answers 5 {SEEDS}",
    "passkey": f"--model code --text plain --tokens 2K 4K --keys 4 --questions 4 {SEEDS}",
    "perplexity": f"--model language --data {DOCS} --tokens 0 512 --windows 1 --max-documents 4 {SEEDS}",
    "retrieval": f"--model language --file {DOCS / 'evaluation.md'} --tokens 1K 2K {SEEDS}",
}
MEASURED_ANEW = {"reading_seconds", "answering_seconds", "peak_anonymous_bytes"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    options = parser.parse_args()
    differing = [name for name in options.only if not survives(name, options)]
    sys.exit(1 if differing else 0)


def survives(name: str, options: argparse.Namespace) -> bool:
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        assert start(name, whole).wait() == 0
        killed_at: list[int] = []
        for _ in range(options.kills):
            process = start(name, parts)
            # in a cell or between two, or while it starts
            wanted = len(rows(parts)) + moments.randint(0, 3)
            while process.poll() is None and len(rows(parts)) < wanted:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.5))
            process.kill()
            if process.wait() == 0:
                break
            killed_at.append(len(rows(parts)))
        assert start(name, parts).wait() == 0
        same = rows(whole) == rows(parts) and records(whole) == records(parts)
    told = "the same records and rows" if same else "NOT the same records and rows"
    print(f"{name}: killed {len(killed_at)} times, with {killed_at} cells finished; {told}")
    return same


def start(name: str, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "longfocus", "evaluate", name, *EXPERIMENTS[name].split()]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*command, "--output", str(output)], stdout=quiet, stderr=quiet)


def rows(output: Path) -> list[dict[str, Any]]:
    file = output / "metrics.json"
    found = json.loads(file.read_text())["rows"] if file.exists() else []
    return [{key: own for key, own in row.items() if key not in MEASURED_ANEW} for row in found]


def records(output: Path) -> list[Any]:
    return [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
