"""What a trainer asks of a training method: one forward pass, and the state that the next one needs.

A method says what a batch sees beyond its own window. Methods that look back (`transformer_xl`, `real_memory`) rely on
rows that go on: row b of a batch continues row b of the batch before, also between the micro-batches of one step.
"""

from typing import Any, Protocol, TypedDict

from torch import Tensor, nn


class Batch(TypedDict):
    """One micro-batch, on the model's device."""

    input_ids: Tensor
    """[rows, tokens] int64; every row continues its row of the batch before (`document_rows` keeps a row on its
    document until it ends)."""
    labels: Tensor
    """[rows, tokens] next tokens, already shifted; -100 where there is no loss."""
    documents: Tensor
    """[rows, tokens] running number of the document of each input token; -1: padding, no token."""


class Method(Protocol):
    """A way to train: what the model sees, not how its weights change."""

    def forward(self, model: nn.Module, batch: Batch, loss: dict[str, Any]) -> Any:
        """The model's output, with `loss` and `logits`.

        `loss` is passed to the model's forward, which computes the loss itself: `{"labels": labels, "shift_labels":
        labels, "num_items_in_batch": count}`. The model may be wrapped (DDP, PEFT): it is called like a module.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers: what the next step needs beside the weights, to the last bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
