"""Run by torchrun in test_ranks_end.py: `longfocus train scratch`, with something wrong in process 1 alone.

torchrun --nproc-per-node 2 failing_ranks.py DIR FAULT

What process n says goes to DIR/said-n.txt, its exit code to DIR/code-n.txt.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ending import gloo_threads

from longfocus.cli.main import main
from longfocus.training import checkpoints
from longfocus.training.crossbatch import Crossbatch

SMALL = "--cpu --batch-size 4 --layers 3 --hidden-size 32 --heads 2 --kv-heads 1 --head-dim 16"
SMALL += " --window 32 --vocabulary 300 --max-steps 4 --save-steps 2"


def nothing(directory: Path) -> None: ...


def data(directory: Path) -> None:
    os.chdir(directory / "elsewhere")


def checkpoint(directory: Path) -> None:
    """The one of an earlier run (`interruption`)."""
    (directory / "out" / "checkpoints" / "checkpoint-2" / "rows-1.pt").write_bytes(b"PK")


def interruption(directory: Path) -> None:
    in_step(2, lambda output: os.kill(os.getpid(), signal.SIGTERM))


def loss(directory: Path) -> None:
    def spoil(output: Any) -> None:
        output.loss = output.loss * float("nan")

    in_step(3, spoil)


def gradient(directory: Path) -> None:
    in_step(3, lambda output: output.loss.register_hook(lambda grad: grad * float("nan")))


def disk(directory: Path) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoints.save_rank = full


def unforeseen(directory: Path) -> None:
    """Between two meetings, where the other process waits for a gradient."""

    def fail(output: Any) -> None:
        raise OSError(5, "Input/output error")

    in_step(3, fail)


def in_step(step: int, do: Callable[[Any], object]) -> None:
    """Does something with the model's output in this step."""
    forward = Crossbatch.forward

    def spoiled(method: Crossbatch, *args: Any) -> Any:
        output = forward(method, *args)
        if method._batches == step:
            do(output)
        return output

    Crossbatch.forward = spoiled


if __name__ == "__main__":
    directory, fault, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
    os.chdir(directory)
    said = os.open(directory / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, sys.stderr.fileno())
    if rank == 1:
        globals()[fault](directory)
    code = main(
        ["train", "scratch", "--data", "texts", "--output", str(directory / "out"), *SMALL.split()]
    )
    assert not gloo_threads()
    (directory / f"code-{rank}.txt").write_text(str(code))
    sys.exit(code)
