"""The model that an experiment examines: sessions with the memory that was asked for, and what they cost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from longfocus.errors import LongFocusError
from longfocus.evaluation.costs import Costs
from longfocus.evaluation.experiment import Cell
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.evaluation.stream import Stream
from longfocus.inference.prompts import Prompts
from longfocus.inference.reader import Reading
from longfocus.inference.session import Session
from longfocus.inference.source import Source, tokenize
from longfocus.memory.document import DocumentMemory

Tell = Callable[[int, str], None]
"""Told how many tokens were read for a cell so far, and what is going on."""


class Subject:
    """A model under examination. `folder` is where it was loaded from; what lies beside it may be of use."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        memory: MemoryOptions | None = None,
        *,
        window_prefix: str | Sequence[int] = (),
        folder: str | Path = "",
    ) -> None:
        memory = memory or MemoryOptions()
        self.model, self.tokenizer, self.folder = model, tokenizer, Path(folder)
        self.window_prefix = window_prefix
        self._settings: dict[str, Any] = {"window_prefix": window_prefix, **memory.of_session}
        self.begin({})

    @property
    def has_memory(self) -> bool:
        """Whether the model has a memory; some experiments also take models without."""
        # a stock model has no such attribute
        return getattr(self.model, "focus", None) is not None

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.model.focus.config.window

    def begin(self, cell: Cell, tell: Tell = lambda done, text: None) -> None:
        """Count the costs of another cell from now on."""
        self.costs, self._tell = Costs(), tell
        self.expected = cell.get("tokens", 0)
        """Tokens that will be read for the cell; for an experiment to set, where they are not those of the cell."""
        self._read = 0

    def tell(self, text: str) -> None:
        """Say what is going on."""
        self._tell(self._read, text)

    @contextmanager
    def costs_aside(self) -> Iterator[None]:
        """What is done within costs the cell nothing."""
        own, self.costs = self.costs, Costs()
        try:
            yield
        finally:
            self.costs = own

    def advance(self, tokens: int) -> None:
        """Tell of tokens that were read without a session."""
        self._read += tokens
        self.tell(f"{self._read:,} tokens read")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session with nothing in memory; its memory is given back at the end. With positions="true" a `Stream`."""
        kind = Stream if self.is_one_stream else Session
        made = kind(self.model, self.tokenizer, **self._settings)
        try:
            yield made
            self.costs.note(made)
        finally:
            made.documents.clear()

    @property
    def is_one_stream(self) -> bool:
        """Whether the memory has places, so that documents cannot be read into it one by one."""
        return self.has_memory and self.model.focus.config.positions == "true"

    def refuse_one_stream(self) -> None:
        """Raise LongFocusError if the memory has places, where documents are to lie side by side."""
        if self.is_one_stream:
            raise LongFocusError(
                'This model has positions="true": its memory is one stream, and holds no documents side by side. Give '
                "a model with other positions, or measure this one with perplexity, dictionary or passkey."
            )

    def beginnings(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of beginnings of lines, which are to be continued: no chat template stands around them."""
        return Prompts(self.tokenizer, None).rows(texts)

    def read(
        self, session: Session, source: Source, name: str | None = None
    ) -> DocumentMemory | None:
        """`session.read`, timed, and told about; of a stream, what comes next in it, which is no document."""
        if isinstance(session, Stream):
            with self.costs.timed("reading"):
                for piece in tokenize(source, self.tokenizer):
                    session.append(piece.input_ids, self.advance)
            self.costs.memory_bytes = max(self.costs.memory_bytes, session.nbytes)
            return None
        cache, before = session.cache(), self._read

        def report(done: int, is_all: bool) -> None:
            self._read = before + done
            self.tell(f"{self._read:,} tokens read")

        own = {"config": cache.config, "searches": cache.searches, "allocate": cache.allocate}
        with self.costs.timed("reading"):
            reading = Reading(self.model, self.tokenizer, source, name, session.window_prefix, own)
            document = reading.run(report)
        session.documents.append(document)
        # it may be forgotten before the session ends
        self.costs.memory_bytes = max(self.costs.memory_bytes, session.nbytes)
        return document

    def answering(self) -> Any:
        """What is within counts as answering."""
        self.tell("answering")
        return self.costs.timed("answering")


def answer_plainly(model: Any) -> None:
    """Let a model generate greedily and by nothing else, whatever its `generation_config` says from now on.

    A repetition penalty, which some models bring along, would punish an answer for standing in the prompt, and not for
    standing in the memory.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
