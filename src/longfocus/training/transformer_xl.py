"""Transformer-XL (Dai et al., 2019) as the paper's baseline: every layer also sees the window before, without gradient.

    step n - 1     | a a a a b b b b |        keys and values of every layer, of the weights of then
    step n                           | b b b c c c c c |
                           <-------- b sees b           c sees the window only, b of this window included

The model is the stock model, without memory. Not here: the relative encoding of the original, in place of which the
model's own rotary encoding counts distances over both windows (`hf/previous_window.py`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from longfocus.errors import LongFocusError
from longfocus.hf.layers import model_inside
from longfocus.hf.previous_window import (
    PreviousWindow,
    refuse_checkpointing,
    rotaries_of,
    window_mask,
)
from longfocus.hf.rotary import Rotary
from longfocus.training.history import History, continuation
from longfocus.training.methods import Batch


class TransformerXL:
    """A `Method`: each batch is one window of `window` tokens, and sees the batch before it.

    What is seen, by every layer: the tokens of the own window up to the own (as in plain training, also those of a
    document that ended in it), and those tokens of the previous window that belong to the document that the row goes on
    with, by the tokens of that document only. Padding is never seen. Through its hidden states the previous window
    carries what it saw itself, so n layers reach back n windows.

    Keys and values are those of the step before, of the weights of then. They carry no gradient.
    """

    def __init__(self, window: int) -> None:
        if not isinstance(window, int) or window < 1:
            raise LongFocusError(f"window must be at least 1 token. Got {window!r}.")
        self.window = window
        self._history: History | None = None
        self._rotaries: dict[int, Rotary] | None = None

    def forward(self, model: nn.Module, batch: Batch, loss: dict[str, Any]) -> Any:
        inside, documents = model_inside(model), batch["documents"]
        refuse_checkpointing(inside)
        self._rotaries = self._rotaries or rotaries_of(inside)
        before = self._before(documents)
        cache = PreviousWindow(self._rotaries, before.pairs)
        positions = torch.arange(self.window, 2 * self.window, device=documents.device)
        with cache.told_rotations(inside):
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=window_mask(inside, visible(before.documents, documents)),
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                **loss,
            )
        output.past_key_values = None
        self._history = History(documents, cache.current())
        return output

    def _before(self, documents: Tensor) -> History:
        """What the rows read before; nothing at the beginning."""
        if documents.shape[1] != self.window:
            raise LongFocusError(
                f"Transformer-XL was set up for windows of {self.window} tokens. Got a batch of {documents.shape[1]}. "
                "Give window= the length of the rows."
            )
        history = self._history or History.before(documents)
        history.check_rows(len(documents))
        return history.to(documents.device)

    def state_dict(self) -> dict[str, Any]:
        held = {} if self._history is None else self._history.to_dict()
        return {"window": self.window, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["window"] != self.window:
            raise LongFocusError(
                f"The state is of windows of {state['window']} tokens, this method's have {self.window}. "
                "Resume with the settings that it was saved with."
            )
        self._history = History.from_dict(state) if "documents" in state else None


def visible(before: Tensor, now: Tensor) -> Tensor:
    """Which tokens of both windows the current one sees, by their documents: `[rows, now, before + now]`."""
    seen, sees = continuation(before, now)
    rows, tokens = now.shape
    own = torch.ones(tokens, tokens, dtype=torch.bool, device=now.device).tril()
    return torch.cat([sees[:, :, None] & seen[:, None], own.expand(rows, -1, -1)], dim=2)
