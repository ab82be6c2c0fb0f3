"""Run by torchrun in test_ranks.py: the same training, whatever the number of processes.

torchrun --nproc-per-node N two_ranks.py DIR KIND
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from ending import gloo_threads
from fitting import VOCABULARY, WINDOW, crossbatch, run, tiny_model
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard

from longfocus.core.additional import AdditionalContexts
from longfocus.core.plans import packed_plan
from longfocus.training.ranks import leave
from longfocus.training.rows import Document, document_rows

STEPS, DOCUMENTS, PACKING = 3, 4, 2


def main(directory: Path, kind: str) -> None:
    PartialState(cpu=True)
    torch.set_num_threads(1)
    directory.mkdir(exist_ok=True)
    train_sharded(directory) if kind == "sharded" else train(directory, kind)
    had = gloo_threads()
    leave()
    # torch itself keeps the group of a sharded model
    if kind != "sharded" and Path("/proc/self/task").is_dir():
        assert had or PartialState().num_processes == 1
        assert not gloo_threads()


def train(directory: Path, kind: str) -> None:
    """Three steps of the trainer; each document lasts for all of them, so that rows are the same."""
    rng = np.random.default_rng(0)
    size = STEPS * PACKING * WINDOW + 1
    # ranks have unequally many targets
    documents = [
        Document(rng.integers(1, VOCABULARY, size=size), rng.random(size) < share, "tiny")
        for share in np.linspace(0.2, 1.0, DOCUMENTS)
    ]
    contexts = {"d": "4"} if kind != "segments" else {"contexts": "1/2(0,0) 1/2(1,4)"}
    run(
        directory,
        STEPS,
        method=crossbatch(**contexts, group=everybody()),
        rows=document_rows(
            own_part(documents),
            batch_size=PACKING * len(own_part(documents)),
            length=WINDOW,
            packing=PACKING,
        ),
        learning_rate=0.5,
        gradient_checkpointing=kind == "checkpointed",
        arguments={"optim": "sgd"},
        finish=lambda trainer: save(trainer.accelerator.unwrap_model(trainer.model), directory),
    )


def train_sharded(directory: Path) -> None:
    """One step with all weights in shards (FSDP2), if there are several processes."""
    model = tiny_model()
    if (state := PartialState()).num_processes > 1:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    ids = torch.randint(1, VOCABULARY, (DOCUMENTS * PACKING, WINDOW))
    distributed_ids = own_part(list(ids))
    plan = packed_plan(DOCUMENTS, windows=PACKING, d=4)
    contexts = AdditionalContexts(torch.stack(own_part(list(plan))), group=everybody())
    rows = torch.stack(distributed_ids)
    output = model(rows, labels=rows, additional_contexts=contexts, use_cache=False)
    # every rank has as many targets, and shards average gradients over ranks
    output.loss.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.step()
    loss = output.loss.detach().clone()
    if state.num_processes > 1:
        distributed.all_reduce(loss)
    if state.is_main_process:
        line = json.dumps({"step": 1, "loss": loss.item() / state.num_processes})
        (directory / "metrics.jsonl").write_text(line + "\n")
    save(model, directory)


def everybody() -> Any:
    return distributed.group.WORLD if PartialState().num_processes > 1 else None


def own_part(given: list[Any]) -> list[Any]:
    state = PartialState()
    size = len(given) // state.num_processes
    return given[state.process_index * size : (state.process_index + 1) * size]


def save(model: Any, directory: Path) -> None:
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    if PartialState().is_main_process:
        torch.save(weights, directory / "weights.pt")


def whole(weight: Any) -> Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
