"""How models of several kinds are given the text before a window, and the loss of the window's tokens behind it.

    memory             it is read into the model's memory, every document in isolation
    stream             a memory with positions="true": all of it is one stream, which the window goes on
    previous window    Transformer-XL: every layer sees the window before (a recipe.json beside the model says
                       "method": "transformer_xl")
    plain              any model without memory: it stands in the prompt, all in one forward pass

All kinds are asked for the same tokens: those of the window but its first, each after the window's tokens before it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import PLAIN_WINDOW
from longfocus.hf.layers import learned_positions, model_inside
from longfocus.hf.previous_window import PreviousWindow, rotaries_of, window_mask
from longfocus.inference.prompts import starting_ids

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject
    from longfocus.inference.session import Session

RECIPE_FILE, TRANSFORMER_XL = "recipe.json", "transformer_xl"


class Predicts(Protocol):
    """A model, with something before it."""

    def logits(self, window: Int[Tensor, " tokens"]) -> Tensor:
        """What follows each token of a window `[tokens, vocabulary]`."""


class Context(Predicts, Protocol):
    """What a model has before it when it comes to a window."""

    def read(self, ids: Int[Tensor, " tokens"]) -> None:
        """Have one more text before the window, behind those that are there."""

    def forget(self) -> None:
        """Take back the text that was read last."""


@contextmanager
def empty_context(subject: "Subject") -> Iterator[Context]:
    """Nothing before the window yet, for a model of any kind."""
    if subject.is_one_stream:
        yield _Stream(subject)
    elif subject.has_memory:
        with subject.session() as session:
            yield _Memory(subject, session)
    elif (window := previous_window(subject)) is not None:
        yield _PreviousWindow(subject, window)
    else:
        yield _Plain(subject)


@contextmanager
def holding(context: Context, ids: Int[Tensor, " tokens"]) -> Iterator[None]:
    """Have one more text before the window meanwhile."""
    if len(ids):
        context.read(ids)
    yield
    if len(ids):
        context.forget()


@torch.inference_mode()
def mean_loss(context: Predicts, window: Int[Tensor, " tokens"]) -> float:
    """Of all tokens of the window but the first."""
    logits = context.logits(window)[:-1]
    return functional.cross_entropy(logits.float(), window[1:].to(logits.device)).item()


def previous_window(subject: "Subject") -> int | None:
    """Tokens of a window of a Transformer-XL; None for another model."""
    file = subject.folder / RECIPE_FILE
    if not file.is_file():
        return None
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
        window = recipe["window"] if recipe.get("method") == TRANSFORMER_XL else None
    except (ValueError, KeyError, AttributeError):
        window = 0
    if window is not None and not (isinstance(window, int) and window > 0):
        raise LongFocusError(
            f"{file} is damaged: it should be JSON that says what method the model was trained with, and for "
            f"{TRANSFORMER_XL} the tokens of its window. Put the file of the training back, or take it away if the "
            "model is no Transformer-XL."
        )
    return window


def evaluated_tokens(subject: "Subject", asked: int | None) -> int:
    """Tokens of an evaluated window. Raises LongFocusError for more than the model's window holds."""
    if subject.has_memory:
        most: int | None = subject.window - len(
            starting_ids(subject.window_prefix, subject.tokenizer)
        )
    else:
        most = previous_window(subject)
    if asked is not None and most is not None and asked > most:
        raise LongFocusError(
            f"--evaluated {asked} does not fit in a window of this model, which has room for {most} tokens. Give at "
            "most that many, or leave it out."
        )
    return asked or most or PLAIN_WINDOW


class _Memory:
    def __init__(self, subject: "Subject", session: "Session") -> None:
        self.subject, self.session = subject, session

    def read(self, ids: Tensor) -> None:
        self.subject.read(self.session, ids)

    def forget(self) -> None:
        self.session.documents.pop()

    def logits(self, window: Tensor) -> Tensor:
        with self.subject.answering():
            return window_logits(self.subject, window, self.session.cache())


def window_logits(subject: "Subject", window: Tensor, cache: Any) -> Tensor:
    """Those of a window that sees what a cache holds; the window begins with the prefix, if there is one."""
    prefix = starting_ids(subject.window_prefix, subject.tokenizer)
    ids = torch.cat([torch.tensor(prefix, dtype=torch.long), window]).to(subject.model.device)
    # under the published rules all but the last tokens of a prompt would go to the memory at once
    output = subject.model(
        input_ids=ids[None], past_key_values=cache, last_context_length=len(ids), use_cache=True
    )
    return output.logits[0, len(prefix) :]


class _Plain:
    def __init__(self, subject: "Subject") -> None:
        self.subject = subject
        self.most = learned_positions(subject.model)
        self.texts: list[Tensor] = []

    def read(self, ids: Tensor) -> None:
        self.texts.append(ids)

    def forget(self) -> None:
        self.texts.pop()

    def logits(self, window: Tensor) -> Tensor:
        prefix = starting_ids(self.subject.window_prefix, self.subject.tokenizer)
        ids = torch.cat([torch.tensor(prefix, dtype=torch.long), *self.texts, window])
        model = self.subject.model
        if self.most is not None and len(ids) > self.most:
            raise LongFocusError(
                f"This model has a table of {self.most:,} positions, and no memory: {len(ids):,} tokens do not fit in "
                "its prompt. Give shorter --tokens."
            )
        with self.subject.answering():
            output = model(
                input_ids=ids[None].to(model.device),
                use_cache=False,
                logits_to_keep=len(window),
            )
        return output.logits[0]


class _Stream(_Plain):
    """A memory whose pairs have places: all before the window is one text, read anew for every window."""

    def logits(self, window: Tensor) -> Tensor:
        with self.subject.session() as session:
            for text in self.texts:
                self.subject.read(session, text)
            with self.subject.answering():
                return window_logits(self.subject, window, session.cache())


class _PreviousWindow(_Plain):
    """A Transformer-XL. Whole windows are read; what does not fill one at the beginning is left out."""

    def __init__(self, subject: "Subject", window: int) -> None:
        super().__init__(subject)
        if subject.window_prefix:
            raise LongFocusError(
                "A Transformer-XL is trained without a prefix of its windows. Leave out --window-prefix."
            )
        self.window, self.inside = window, model_inside(subject.model)
        self.rotaries = rotaries_of(self.inside)

    def logits(self, window: Tensor) -> Tensor:
        with self.subject.answering():
            cache, output = PreviousWindow(self.rotaries, {}), None
            for ids in [*self._windows(), window]:
                cache = PreviousWindow(self.rotaries, cache.current() if output else {})
                output = self._forward(ids, cache)
        assert output is not None
        return output.logits[0]

    def _windows(self) -> list[Tensor]:
        """The windows before that can matter: through n layers a window reaches back n windows."""
        ids = torch.cat(self.texts) if self.texts else torch.empty(0, dtype=torch.long)
        number = min(len(ids) // self.window, len(self.rotaries))
        return list(ids[len(ids) - number * self.window :].split(self.window)) if number else []

    def _forward(self, ids: Tensor, cache: PreviousWindow) -> Any:
        before = self.window if any(layer.previous for layer in cache.held) else 0
        device = self.subject.model.device
        visible = torch.ones(len(ids), before + len(ids), dtype=torch.bool, device=device)
        # trained at these positions, whether or not something stands before them
        places = torch.arange(self.window, self.window + len(ids), device=device)
        with cache.told_rotations(self.inside):
            return self.subject.model(
                input_ids=ids[None].to(device),
                attention_mask=window_mask(self.inside, visible.tril(before)[None]),
                position_ids=places[None],
                past_key_values=cache,
                use_cache=True,
            )
