"""Two processes give the losses and weights of one with the same global batch, negatives of the other rank included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fitting import losses

SCRIPT = Path(__file__).with_name("two_ranks.py")


def torchrun(processes: int, directory: Path, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(SCRIPT), str(directory), kind]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["paper", "segments", "checkpointed", "sharded"])
def test_two_processes_train_as_one_with_the_same_batch(kind: str, tmp_path: Path) -> None:
    for processes in (1, 2):
        torchrun(processes, tmp_path / str(processes), kind)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=2e-6)
    one, two = (torch.load(tmp_path / n / "weights.pt", weights_only=True) for n in "12")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-6, rtol=1e-5)
