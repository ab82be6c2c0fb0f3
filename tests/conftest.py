"""Every test is offline, seeded, and leaves cores to the tests beside it."""

import os
from collections.abc import Iterator

# Read when huggingface_hub is imported, so set before any test module; subprocesses inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """One thread per worker: with more, tests that run side by side wait for each other."""
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def shapes(request: pytest.FixtureRequest) -> None:
    """Checked where their functions are tested, and in all long tests: it takes as long as what is checked."""
    from jaxtyping import config

    checked = request.path.parent.name in {"core", "memory", "golden"}
    checked = checked or request.node.get_closest_marker("long") is not None
    config.update("jaxtyping_disable", not checked)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it."""
    import random

    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
