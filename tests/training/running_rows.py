"""What the tests of methods that look back share: rows of unequal documents, their batches, and an oracle.

The oracle knows nothing of steps: every row goes through the plain model in one forward pass, in which a token sees its
own window with gradient and marked tokens before it without (`tests/oracle.py` does the rest).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from families import VOCABULARY
from longfocus.training.methods import Batch, Method
from oracle import (
    Memory,
    Sight,
    attention_modules,
    attention_replaced,
    capped,
    hide,
    keep_top,
    keys_seen_from_memory,
    per_query_head,
    softmax_values,
)

WINDOW, WINDOWS = 7, 5
# Tokens of each document of a row; negative: padding. A document ends inside a window, with it, or goes on.
ROWS = [
    [35],
    [10, 25],
    [14, 3, 6, -12],
    [4, -3, 14, -14],
    [1, 5, 8, 21],
]


@dataclass(frozen=True)
class Rows:
    """Whole rows `[rows, tokens]`."""

    input_ids: Tensor
    labels: Tensor
    documents: Tensor

    @property
    def is_token(self) -> Tensor:
        return self.documents >= 0

    def batches(self) -> list[Batch]:
        names = ("input_ids", "labels", "documents")
        parts = [[t.contiguous() for t in getattr(self, name).split(WINDOW, 1)] for name in names]
        return [Batch(**dict(zip(names, each, strict=True))) for each in zip(*parts, strict=True)]


def running_rows(layout: list[list[int]] = ROWS) -> Rows:
    generator = torch.Generator().manual_seed(7)
    number, rows = 0, []
    for lengths in layout:
        row = []
        for length in lengths:
            row += [number] * length if length > 0 else [-1] * -length
            number += length > 0
        rows.append(row)
    documents = torch.tensor(rows)
    input_ids = torch.randint(3, VOCABULARY, documents.shape, generator=generator)
    input_ids[documents < 0] = 0
    labels = input_ids.roll(-1, 1)
    labels[:, -1] = -100
    labels[documents < 0] = -100
    return Rows(input_ids, labels, documents)


def loss_arguments(batch: Batch, count: int) -> dict[str, Any]:
    """What the trainer has the model compute: the sum of losses over `count`."""
    labels = batch["labels"]
    return {"labels": labels, "shift_labels": labels, "num_items_in_batch": torch.tensor(count)}


def steps(method: Method, model: nn.Module, rows: Rows, since: int = 0) -> Iterator[Any]:
    """Outputs of one step per window; the losses add up to that of the rows."""
    count = int((rows.labels >= 0).sum())
    for batch in rows.batches()[since:]:
        yield method.forward(model, batch, loss_arguments(batch, count))


def stepped(method: Method, model: nn.Module, rows: Rows) -> tuple[Tensor, float]:
    """Logits of whole rows and their loss; gradients add up in the model."""
    logits, loss = [], 0.0
    for output in steps(method, model, rows):
        assert output.past_key_values is None
        output.loss.backward()
        logits.append(output.logits.detach())
        loss += output.loss.item()
    return torch.cat(logits, 1), loss


class LookingBack(Sight):
    """Tokens see their window, and without gradient up to `reach` tokens before it of their own document."""

    def __init__(self, rows: Rows, reach: int, positions: Tensor, memory: Memory) -> None:
        windows = torch.arange(rows.documents.shape[1]) // WINDOW
        super().__init__(windows, torch.ones_like(rows.documents).bool(), positions, memory)
        self.documents, self.reach = rows.documents, reach

    def remembered(self) -> Tensor:
        index = torch.arange(len(self.windows))
        near = index >= (self.windows * WINDOW - self.reach)[:, None]
        same = self.documents[:, :, None] == self.documents[:, None, :]
        real = self.documents[:, None, :] >= 0
        return (super().remembered()[:, 0] & near & same & real)[:, None]

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **ignored: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        if self.catching_keys or layer not in self.memory.layers:
            given = {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
            return super().attention(module, query, key, value, None, scaling, **given)
        seen = self.remembered()
        if sliding_window is not None and self.memory.positions == "true":
            index = torch.arange(len(self.windows))
            seen = seen & (index[:, None] - index < sliding_window)

        def scores(keys: Tensor) -> Tensor:
            return capped(query @ per_query_head(keys, query).mT * scaling, softcap)

        values = per_query_head(value, query)
        window = (hide(scores(key), self.local(sliding_window)), values)
        before = hide(scores(self.memory_keys[layer].detach()), seen)
        memory = (keep_top(before, self.memory.top_k), values.detach())
        gate = self.memory.gates.get(layer)
        if gate is None:
            return softmax_values([window, memory], s_aux).transpose(1, 2), None
        share = torch.sigmoid(gate).view(1, -1, 1, 1) * seen.any(-1, keepdim=True)
        mixed = (1 - share) * softmax_values([window], s_aux)
        return (mixed + share * softmax_values([memory], s_aux)).transpose(1, 2), None


def rows_oracle(
    model: PreTrainedModel, rows: Rows, reach: int, memory: Memory
) -> tuple[Tensor, float]:
    """Logits of the rows and their loss; gradients add up in the model."""
    positions = torch.arange(rows.documents.shape[1])
    if memory.positions != "true":
        positions = positions % WINDOW
    positions = positions.expand(len(rows.documents), -1)
    sight = LookingBack(rows, reach, positions, memory)
    with attention_replaced(model, sight), ExitStack() as wrapped:
        for layer, module in attention_modules(model).items():
            if layer in memory.layers:
                wrapped.enter_context(keys_seen_from_memory(module, sight))
        logits = model(rows.input_ids, position_ids=positions, use_cache=False).logits
    loss = cross_entropy(logits.flatten(0, 1).float(), rows.labels.flatten(), ignore_index=-100)
    loss.backward()
    return logits.detach(), loss.item()


def assert_same_training(
    actual: tuple[Tensor, float],
    expected: tuple[Tensor, float],
    models: tuple[PreTrainedModel, PreTrainedModel],
    rows: Rows,
    tolerance: float = 1e-4,
) -> None:
    """Logits of real tokens, losses, and the gradients of all weights that both have."""
    real = rows.is_token
    torch.testing.assert_close(actual[0][real], expected[0][real], atol=tolerance, rtol=0)
    torch.testing.assert_close(actual[1], expected[1], atol=tolerance, rtol=0)
    found, wanted = (dict(model.named_parameters()) for model in models)
    for name, parameter in wanted.items():
        if parameter.grad is None:
            assert found[name].grad is None, name
            continue
        error = (found[name].grad - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6)
        assert error < tolerance, name


class Run:
    """Training over the rows, step by step, that can be saved and taken up again by another object."""

    def __init__(self, method: Method, model: PreTrainedModel, precision: str = "float32") -> None:
        self.method, self.autocasts = method, precision == "autocast"
        self.model = model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def losses(self, windows: slice = slice(None)) -> list[float]:
        found = []
        for batch in running_rows().batches()[windows]:
            count = int((batch["labels"] >= 0).sum())
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocasts):
                loss = self.method.forward(self.model, batch, loss_arguments(batch, count)).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            found.append(loss.item())
        return found

    def save(self, path: Path) -> None:
        torch.save([part.state_dict() for part in (self.model, self.optimizer, self.method)], path)

    def load(self, path: Path) -> None:
        # nothing but tensors and plain numbers
        states = torch.load(path, weights_only=True)
        for part, state in zip((self.model, self.optimizer, self.method), states, strict=True):
            part.load_state_dict(state)


def assert_resumes_exactly(make: Callable[[], Run], path: Path) -> None:
    """Wherever it is interrupted, also before the first step, a run goes on as if it had not been."""
    whole = make().losses()
    assert len(set(whole)) == WINDOWS
    for stop in (0, 3):
        first, second = make(), make()
        before = first.losses(slice(stop))
        first.save(path)
        second.load(path)
        assert before + second.losses(slice(stop, None)) == whole


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """A process group of this process alone, as DDP needs one."""
    store = torch.distributed.FileStore(str(path), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
