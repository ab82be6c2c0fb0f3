"""Batches of the code model: previous windows first, then current ones, and the plan that joins them.

mixed   8 documents: previous windows 0..7 | current windows 8..15    code; in every second document the
                                                                      previous window holds pass-key lines
                                                                      and the current one asks for them
dense   M previous windows of definitions | Q current windows that ask for the lines of windows 0..Q-1
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.core.plans import paper_plan
from longfocus.training.code_recipe import CodeRecipe, Phase
from longfocus.training.corpus import Corpus
from longfocus.training.passkey_task import LineMaker, dense_windows, mixed_window

TOKENS_PER_LINE = 26
DENSE_TOKENS = 3500
"""Tokens of a dense batch while the task is being found."""


@dataclass(frozen=True)
class Batch:
    """Rows, who sees whom, and what is to be predicted."""

    ids: Tensor
    """Token ids (rows, window)."""

    plan: Tensor
    """Crossbatch plan (rows, d)."""

    code: Tensor
    """Tokens predicted as code (rows, window), bool."""

    digits: Tensor
    """Tokens predicted as answers (rows, window), bool; five in a row each."""


class Batches:
    """Draws batches; every random choice comes from the generator of the call."""

    def __init__(
        self,
        recipe: CodeRecipe,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        words: tuple[str, ...],
    ) -> None:
        self.recipe, self.corpus, self.tokenizer = recipe, corpus, tokenizer
        self.lines = LineMaker(tokenizer, words)
        self.starts_line = line_starts(tokenizer)
        sizes = np.diff(corpus.starts)
        self.long_enough = np.flatnonzero(sizes > 2 * recipe.window)
        # by the square root, so that the largest packages do not fill the batches
        weights = np.sqrt(sizes[self.long_enough])
        self.weights = weights / weights.sum()

    def draw(self, phase: Phase, generator: torch.Generator) -> tuple[Batch, bool]:
        """A batch of the phase, and whether it is a dense one."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        is_dense = bool(rng.random() < phase.dense_share)
        return (self.dense(phase, rng) if is_dense else self.mixed(phase, rng)), is_dense

    def mixed(self, phase: Phase, rng: np.random.Generator) -> Batch:
        """Code of the recipe's documents, every second one with pass keys to find."""
        documents, window = self.recipe.documents, self.recipe.window
        counts = [
            int(rng.integers(1, phase.mixed_keys + 1)) if i % 2 == 0 else 0
            for i in range(documents)
        ]
        lines = self.lines.draw(sum(counts), rng, hard=phase.hard)
        ends = np.cumsum(counts)
        ids = np.zeros((2 * documents, window), dtype=np.int64)
        digits = np.zeros((2 * documents, window), dtype=bool)
        for i, (count, end) in enumerate(zip(counts, ends, strict=True)):
            code, which = self._excerpt(2 * window, rng), range(end - count, end)
            ids[i], _ = mixed_window(code[:window], self.starts_line, lines, which, window, rng)
            now = mixed_window(code[window:], self.starts_line, lines, which, window, rng)
            ids[documents + i], digits[documents + i] = now
        return _batch(
            ids, paper_plan(documents, d=self._contexts(phase, documents, rng)), ~digits, digits
        )

    def dense(self, phase: Phase, rng: np.random.Generator) -> Batch:
        """Windows of pass-key lines; the current ones ask for the lines of the first previous ones."""
        per_row = int(rng.choice(phase.lines))
        rows, asked, window = phase.windows, phase.asked_windows, self.recipe.window
        if not rows:
            window = min(TOKENS_PER_LINE * per_row + 12, window)
            rows = asked = max(2, DENSE_TOKENS // (2 * window))
        lines = self.lines.draw(rows * per_row, rng, hard=phase.hard)
        order = rng.permutation(rows * per_row).reshape(rows, per_row)
        before = dense_windows(lines, order, window)
        now = dense_windows(lines, rng.permuted(before.whole[:asked], axis=1), window)
        digits = np.concatenate([np.zeros_like(before.digits), now.digits])
        plan = paper_plan(rows, d=self._contexts(phase, rows, rng))[: rows + asked]
        return _batch(np.concatenate([before.ids, now.ids]), plan, np.zeros_like(digits), digits)

    def _contexts(self, phase: Phase, documents: int, rng: np.random.Generator) -> int:
        # drawn for the control too, so that both see the same data
        drawn = min(int(rng.choice(phase.contexts)), documents)
        return 1 if self.recipe.control else drawn

    def _excerpt(self, tokens: int, rng: np.random.Generator) -> np.ndarray:
        document = self.corpus.document(int(rng.choice(self.long_enough, p=self.weights)))
        start = int(rng.integers(len(document) - tokens))
        return np.asarray(document[start : start + tokens], dtype=np.int64)


def line_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """For every token id, whether it begins a line (vocabulary,), bool."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return np.array([text.startswith("\n") for text in texts])


def _batch(ids: np.ndarray, plan: Tensor, code: np.ndarray, digits: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(ids), plan, torch.from_numpy(code), torch.from_numpy(digits))
