"""Training on a real memory: what a row has read before of its document, without gradient.

With `FocusConfig(merge="gate")` this is the Memorizing Transformer, the paper's baseline. With `merge="joint"` it is
the final phase of the mixed protocol: crossbatch first, then the memory that the model will have.

    memory                    window
    a a a b b b b b           b b b c c c      b sees its memory and the window, c the window only
          b b b b b b b b     (c)              one window later the memory of c begins, that of b is forgotten
"""

from typing import Any

import torch
from torch import Tensor, nn

from longfocus.errors import LongFocusError
from longfocus.hf.layers import model_inside
from longfocus.hf.model import FocusMixin
from longfocus.hf.row_memory import RowMemory
from longfocus.memory.continued import ContinuedPart
from longfocus.training.history import History, continuation
from longfocus.training.methods import Batch


class RealMemory:
    """A `Method` for a model with memory attached: memory layers look back up to `reach` tokens before the window.

    What is seen: by every layer, the tokens of the own window up to the own (as in plain training, also those of a
    document that ended in it). By memory layers also the last `reach` tokens before the window, as far as they belong
    to the document that the row goes on with, by the tokens of that document only. A document that begins inside a
    window sees no memory there; from the next window on it sees its own tokens, and nothing of the document before it,
    except what their hidden states took over from the window that they shared. Padding is never seen.

    Keys and values are those of the step in which they were computed, of the weights of then. They carry no gradient:
    weights learn through the own window's keys and values, and through the queries (and gates) that look at either.
    """

    def __init__(self, reach: int) -> None:
        if not isinstance(reach, int) or reach < 1:
            raise LongFocusError(
                f"reach must be at least 1 token of memory. Got {reach!r}. The Memorizing Transformer's is 65536."
            )
        self.reach = reach
        self._history: History | None = None

    def forward(self, model: nn.Module, batch: Batch, loss: dict[str, Any]) -> Any:
        inside, documents = _with_memory(model), batch["documents"]
        config = inside.focus.config
        _check_window(documents.shape[1], config.window)
        history = self._history or History.before(documents)
        history.check_rows(len(documents))
        history = history.to(documents.device)
        cache = RowMemory(inside, _parts(config.memory_layers, history, documents))
        output = model(input_ids=batch["input_ids"], past_key_values=cache, use_cache=True, **loss)
        output.past_key_values = None
        self._history = history.extended(documents, cache.window_pairs(), self.reach)
        return output

    def state_dict(self) -> dict[str, Any]:
        held = {} if self._history is None else self._history.to_dict()
        return {"reach": self.reach, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["reach"] != self.reach:
            raise LongFocusError(
                f"The state is of a memory that reaches {state['reach']} tokens, this method's reaches {self.reach}. "
                "Resume with the settings that it was saved with."
            )
        self._history = History.from_dict(state) if "documents" in state else None


def _parts(
    layers: tuple[int, ...], history: History, documents: Tensor
) -> dict[int, ContinuedPart]:
    """What each memory layer looks into; in the first window too, so that gates take part as DDP wants it."""
    seen, sees = continuation(history.documents, documents)
    rows = tuple(range(len(documents)))
    # of no pairs, heads and their size do not matter
    nothing = torch.empty(len(rows), 1, 0, 1, device=documents.device)
    pairs = {layer: history.pairs.get(layer, (nothing, nothing)) for layer in layers}
    return {
        layer: ContinuedPart(key, value, seen, rows, sees=sees)
        for layer, (key, value) in pairs.items()
    }


def _with_memory(model: nn.Module) -> FocusMixin:
    """The attached model inside the wrappers of a trainer."""
    inside = model_inside(model)
    if not isinstance(inside, FocusMixin) or not inside.focus.config.memory_layers:
        raise LongFocusError(
            f"Real memory needs a model with memory layers. Got a {type(inside).__name__} without. Call "
            "longfocus.attach(model, longfocus.FocusConfig(memory_layers=..., window=...)) first."
        )
    return inside


def _check_window(tokens: int, window: int) -> None:
    if tokens > window:
        raise LongFocusError(
            f"A training window has at most the {window} tokens of the model's FocusConfig. Got rows of {tokens}. "
            f"Give rows of length={window}, or attach with window={tokens}."
        )
