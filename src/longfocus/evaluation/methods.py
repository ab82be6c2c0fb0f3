"""Ways to have a long text before a question, or before tokens to be predicted, while attending to few tokens at once.

    truncated   the last tokens of the text stand in the prompt
    full        all of them; no prompt is as long, so this is what the others are measured against
    memory      the last tokens stand in the prompt, and those before them are read into the model's memory
    memory_only all of the text is read into memory, and nothing of it stands in the prompt, as `Session.ask` has it
    bm25        its chunks that share rare words with the question stand in the prompt (bm25.py)

All but `full` have at most the tokens of the budget in their prompt, with question and answer (budget.py). A prompt
begins with the prefix of windows, if there is one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from longfocus.errors import LongFocusError
from longfocus.evaluation.bm25 import Index, line_begins, together
from longfocus.evaluation.budget import Budget
from longfocus.evaluation.contexts import empty_context
from longfocus.hf.cache import FocusCache
from longfocus.hf.cached_pairs import may_be_cut
from longfocus.inference.generation import generated
from longfocus.inference.prompts import Prompts

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject
    from longfocus.inference.session import Session

MEMORY = ("memory", "memory_only")
BATCH_TOKENS = 16_384
"""Of prompts that are answered together."""

Before = Callable[[int, str], Tensor]
"""What stands in a prompt before a question, in so many tokens."""


class Asked(NamedTuple):
    """A question as token ids: what stands before the text, and what behind it."""

    head: Sequence[int]
    tail: Sequence[int]
    query: str
    """What is looked for."""


def text_room(budget: Budget, questions: Sequence[Asked], answer: int) -> int:
    """Tokens of the text that a prompt has room for, beside any of the questions and an answer of so many tokens.

    Raises LongFocusError where there is none even for those.
    """
    needed = max(len(asked.head) + len(asked.tail) for asked in questions) + answer
    if needed > budget.tokens:
        raise LongFocusError(
            f"A question with its answer needs {needed} tokens, and the budget is {budget.tokens}. Give --budget more "
            "tokens, a model with longer windows, or another wording."
        )
    return budget.tokens - needed


@contextmanager
def before_questions(
    method: str,
    subject: "Subject",
    budget: Budget,
    text: Int[Tensor, " tokens"],
    head: Sequence[int],
    room: int,
) -> Iterator["_Asked | _Whole"]:
    """A text held for questions, whose prompts have room for so many tokens of it, and begin with `head`.

    What holding it takes counts as reading, and what is kept of it as bytes of memory.
    """
    if method == "full":
        yield _Whole(subject, budget, text, head)
        return
    far, near = _at_a_line(*_parted(method, text, room), subject.tokenizer)
    before = _before(method, subject, budget, far)
    if not subject.has_memory:
        yield _Asked(subject, None, budget, before, near, room)
        return
    with subject.session() as session:
        if method in MEMORY and len(far):
            subject.read(session, far)
        yield _Asked(subject, session, budget, before, near, room)


@contextmanager
def before_window(
    method: str,
    subject: "Subject",
    budget: Budget,
    text: Int[Tensor, " tokens"],
    evaluated: int,
) -> Iterator["_Predicted | _Whole"]:
    """A text held for the tokens directly behind it, of which so many are to be predicted.

    Its last tokens are what `bm25` looks for: half of the room for text is theirs.
    """
    if method == "full":
        yield _Whole(subject, budget, text, budget.prefix)
        return
    room = budget.text_window - evaluated
    far, near = _parted(method, text, room, looked_for=room // 2)
    before = _before(method, subject, budget, far)
    with empty_context(subject) as context:
        if method in MEMORY and len(far):
            context.read(far)
        yield _Predicted(subject, budget, before, context, near)


def _parted(method: str, text: Tensor, room: int, looked_for: int = 0) -> tuple[Tensor, Tensor]:
    """What is kept elsewhere, and the last tokens, which stand in every prompt."""
    if method == "memory_only":
        local = 0
    elif method == "bm25" and len(text) > room:
        local = looked_for
    else:
        local = room
    border = max(len(text) - local, 0)
    return text[:border], text[border:]


def _at_a_line(far: Tensor, near: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The same text parted where the next line begins: half a line that was hidden would be found nowhere."""
    begins = line_begins(near, tokenizer) if len(far) and len(near) else []
    first = int(begins[0]) if len(begins) else 0
    return together([far, near[:first]]), near[first:]


def _before(method: str, subject: "Subject", budget: Budget, text: Tensor) -> Before:
    """What stands in a prompt of what is kept elsewhere."""
    if method != "bm25" or not len(text):
        return lambda room, query: text[:0]
    with subject.costs.timed("reading"):
        index = Index(text, budget.chunk, subject.tokenizer)
    subject.costs.memory_bytes = max(subject.costs.memory_bytes, index.nbytes)
    return lambda room, query: index.best(query, room)


class _Asked:
    """Questions with a prompt of their own each, within the budget."""

    def __init__(
        self,
        subject: "Subject",
        session: "Session | None",
        budget: Budget,
        before: Before,
        near: Tensor,
        room: int,
    ) -> None:
        self.prompt_tokens: list[int] = []
        """Of every prompt so far."""
        self.subject, self.session, self.budget = subject, session, budget
        self.before, self.near, self.room = before, near.tolist(), room

    def answers(self, questions: Sequence[Asked], room: int) -> list[str]:
        found: list[str] = []
        at_once = max(BATCH_TOKENS // self.budget.tokens, 1)
        with self.subject.answering():
            for start in range(0, len(questions), at_once):
                rows = [self._row(asked) for asked in questions[start : start + at_once]]
                self.prompt_tokens += map(len, rows)
                found += self._continued(rows, room)
        return found

    def _row(self, asked: Asked) -> list[int]:
        chosen = self.before(self.room - len(self.near), asked.query).tolist()
        return [*asked.head, *chosen, *self.near, *asked.tail]

    def _continued(self, rows: list[list[int]], room: int) -> list[str]:
        if self.session is None:
            return _generated(self.subject, None, rows, room)
        # under the published rules all but the last tokens of a prompt would go to the memory at once
        answers = self.session.ask(rows, room, last_context_length=max(map(len, rows)))
        return [answer.text for answer in answers]


class _Predicted:
    """A window with what stands in it before the tokens that are predicted."""

    def __init__(
        self, subject: "Subject", budget: Budget, before: Before, context: Any, near: Tensor
    ) -> None:
        self.prompt_tokens: list[int] = []
        """Of every prompt so far."""
        self.subject, self.budget, self.before = subject, budget, before
        self.context, self.near = context, near

    def logits(self, window: Tensor) -> Tensor:
        room = self.budget.text_window - len(self.near) - len(window)
        query = self.subject.tokenizer.decode(self.near.tolist())
        with self.subject.costs.timed("answering"):
            chosen = self.before(room, query)
        ids = together([chosen, self.near, window])
        self.prompt_tokens.append(len(self.budget.prefix) + len(ids))
        return self.context.logits(ids)[-len(window) :]


class _Whole:
    """All of the text in the prompt; a model with a memory has it all in one window. It is run through once."""

    def __init__(
        self, subject: "Subject", budget: Budget, text: Tensor, head: Sequence[int]
    ) -> None:
        self.prompt_tokens: list[int] = []
        """Of every prompt so far."""
        self.subject, self.shared = subject, [*head, *text.tolist()]
        model = subject.model
        if subject.has_memory:
            window = len(self.shared) + budget.tokens
            self.cache: Any = FocusCache(model, config=replace(model.focus.config, window=window))
        else:
            self.cache = DynamicCache(config=model.config)
        if self.shared:
            with subject.costs.timed("reading"), torch.no_grad():
                self._forward(self.shared, self.cache, logits_to_keep=1)
        costs = subject.costs
        costs.memory_bytes = max(costs.memory_bytes, _bytes_of(self.cache))

    def _forward(self, ids: Sequence[int], cache: Any, **more: Any) -> Any:
        model = self.subject.model
        given = torch.tensor([list(ids)], device=model.device)
        more |= {"last_context_length": len(ids)} if self.subject.has_memory else {}
        return model(input_ids=given, past_key_values=cache, use_cache=True, **more)

    @contextmanager
    def _ahead(self) -> Iterator[Any]:
        """The text's cache to go on from, which afterwards is as before. Only what cannot be cut is copied."""
        if self.subject.has_memory:
            yield self.cache.fork()
        elif not may_be_cut(self.cache):
            yield deepcopy(self.cache)
        else:
            yield self.cache
            if (added := self.cache.get_seq_length() - len(self.shared)) > 0:
                self.cache.crop(-added)

    def answers(self, questions: Sequence[Asked], room: int) -> list[str]:
        found: list[str] = []
        with self.subject.answering():
            for asked in questions:
                row = [*self.shared, *asked.tail]
                self.prompt_tokens.append(len(row))
                with self._ahead() as cache:
                    found += _generated(self.subject, cache, [row], room)
        return found

    def logits(self, window: Tensor) -> Tensor:
        self.prompt_tokens.append(len(self.shared) + len(window))
        with self.subject.answering(), self._ahead() as cache:
            return self._forward(window.tolist(), cache).logits[0]


def _generated(subject: "Subject", cache: Any, rows: list[list[int]], room: int) -> list[str]:
    prompts = Prompts(subject.tokenizer, None)
    more = {"last_context_length": max(map(len, rows))} if subject.has_memory else {}
    new = generated(subject.model, prompts, cache, rows, room, more)
    return [prompts.decode(ids) for ids in new]


def _bytes_of(cache: Any) -> int:
    """Of keys and values of all layers; a layer of another kind has none."""
    pairs = [vars(layer).get(name) for layer in cache.layers for name in ("keys", "values")]
    return sum(pair.nbytes for pair in pairs if pair is not None)
