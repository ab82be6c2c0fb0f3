"""Processes end together: in order after a training, and all of them with one message when one of them cannot go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("failing_ranks.py")


def run(directory: Path, fault: str) -> tuple[list[int], str]:
    """Exit codes of two processes of which the second has a fault, and what both of them said."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(directory), fault]
    subprocess.run(
        command,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    codes = [int((directory / f"code-{rank}.txt").read_text()) for rank in range(2)]
    return codes, "".join((directory / f"said-{rank}.txt").read_text() for rank in range(2))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "texts").mkdir()
    for number in range(6):
        lines = [f"Line {line} of text {number} says {line * 7 % 11}." for line in range(40)]
        (tmp_path / "texts" / f"{number}.txt").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.long
def test_all_processes_train_to_the_end_and_leave_in_order(directory: Path) -> None:
    codes, said = run(directory, "nothing")
    assert codes == [0, 0], said
    assert said.count("The trained model is in") == 1


REASONS = {
    "data": "There is no file or folder texts",
    "loss": "the loss is nan in step 3",
    "gradient": "the gradient is not finite in step 3",
    "disk": "No space left on device",
    "unforeseen": "Input/output error",
}


@pytest.mark.long
@pytest.mark.parametrize("fault", REASONS)
def test_what_one_process_cannot_do_ends_all_with_one_message(fault: str, directory: Path) -> None:
    codes, said = run(directory, fault)
    assert codes == [2, 2], said
    assert said.count("longfocus: error:") == 1
    assert REASONS[fault] in said
    assert "Traceback" not in said


@pytest.mark.long
def test_a_checkpoint_that_one_process_cannot_read_ends_all_with_one_message(
    directory: Path,
) -> None:
    codes, said = run(directory, "interruption")
    assert codes == [130, 143], said
    codes, said = run(directory, "checkpoint")
    assert codes == [2, 2], said
    assert said.count("longfocus: error:") == 1
    assert "rows-1.pt cannot be read" in said
    assert "Traceback" not in said
