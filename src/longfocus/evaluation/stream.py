"""A session of one stream, for models with `positions="true"`: what is read stands in the order in which it comes.

    windows of what was read, each at its true place | window of the question, behind them

Documents have no place in a stream, so there is one text only, which cannot be taken back; every question gets a fork.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.window import MemoryLayer
from longfocus.inference.answer import Answer
from longfocus.inference.session import Session

WINDOWS_TOGETHER = 8
"""That go through the model in one call; so often progress is told."""


class Stream(Session):
    """Answers behind everything that was read. Raises LongFocusError for a prefix of windows: it would move places."""

    _past: FocusCache | None = None
    """The stream so far, its window empty."""

    def __init__(self, model: Any, tokenizer: Any = None, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        if self.window_prefix:
            raise LongFocusError(
                "A stream has no prefix of windows: it would move what stands behind it. Got window_prefix="
                f"{list(self.window_prefix)} with positions='true'. Leave it out."
            )
        self.ids = torch.empty(0, dtype=torch.long)
        """All that was read."""

    @torch.no_grad()
    def append(
        self, ids: Int[Tensor, " tokens"], told: Callable[[int], None] = lambda tokens: None
    ) -> None:
        """Read on; `told` hears after every few windows how many tokens they had."""
        if self._past is None:
            self._past = self._empty_cache()
        for piece in ids.split(WINDOWS_TOGETHER * self.model.focus.config.window):
            self.model(
                piece[None].to(self.model.device), past_key_values=self._past, logits_to_keep=1
            )
            self.ids = torch.cat([self.ids, piece.cpu()])
            told(len(piece))
        self._past.evict(can_undo=False)

    def cache(self) -> FocusCache:
        """A fresh window behind what was read."""
        return self._empty_cache() if self._past is None else self._past.fork()

    def for_rows(self, rows: int) -> FocusCache:
        """The same for a batch."""
        cache = self.cache()
        if self._past is not None and rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        layers = [] if self._past is None else self._past.windows
        return sum(layer.store.nbytes() for layer in layers if isinstance(layer, MemoryLayer))

    def ask(self, question: Any, max_new_tokens: int = 128, **kwargs: Any) -> Any:
        """One question after the other; where the model looked is not known."""
        answers: list[Answer] = []
        for row in self._prompts.rows(question, is_question=True):
            # `generate` wants all ids, and leaves out those that the cache has seen
            answers += super().ask([[*self.ids.tolist(), *row]], max_new_tokens, **kwargs)
        return answers[0] if isinstance(question, str) else answers
