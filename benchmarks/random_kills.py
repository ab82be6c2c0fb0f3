"""A training that is killed again and again must end with the losses and weights of one that was left alone.

    python benchmarks/random_kills.py [--kills 8] [--seed 0]

Trains a tiny model from random weights on docs/ with `longfocus train scratch` in processes of their own: once in
peace, once with SIGKILL at random moments, started again until it is finished. Exits with 1 if they differ.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

DATA = Path(__file__).parents[1] / "docs"
SIZES = (
    "--layers 2 --hidden-size 64 --heads 2 --kv-heads 1 --head-dim 32 --window 64 --vocabulary 400"
)
STEPS = "--max-steps 300 --save-steps 7 --batch-size 8 --accumulation 2 --d 2,4 --cpu"

STEPS_BETWEEN = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        assert start(whole).wait() == 0
        killed_at: list[int] = []
        for _ in range(options.kills):
            process = start(parts)
            # somewhere in or between steps, checkpoints among them
            wanted = max(killed_at, default=0) + moments.randint(1, STEPS_BETWEEN)
            while process.poll() is None and len(losses(parts)) < wanted:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            if process.wait() == 0:
                break
            killed_at.append(len(losses(parts)))
        assert start(parts).wait() == 0
        print(f"killed {len(killed_at)} times, after steps {killed_at}")
        same = losses(whole) == losses(parts)
        weights = [load_file(place / "model.safetensors") for place in (whole, parts)]
        same &= all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        print("the same losses and weights" if same else "NOT the same losses and weights")
        sys.exit(0 if same else 1)


def start(output: Path) -> subprocess.Popen:
    words = ["train", "scratch", "--data", str(DATA), "--output", str(output)]
    command = [sys.executable, "-m", "longfocus", *words, *SIZES.split(), *STEPS.split()]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def losses(output: Path) -> list[float]:
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    # a kill may cut the last line
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
