"""`Session`: documents in a model's memory, questions about them, and a conversation.

    read(source)      a text becomes a document memory, read in isolation
    ask(question)     a question, alone in a fresh window, that sees all documents
    chat(said)        a turn of the session's conversation, which remembers all that was said
    fork(), mark(), rewind(mark)      share, keep and take back what was read and said
    save(path), Session.load(path)    a session as a file
    generate(prompt)  the library's generate with the documents in memory

Documents are never part of the prompt: they do not count in `get_seq_length` or attention masks, so `generate` cannot
cut a question away, and a batch of questions shares them.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.config import Search
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.documents import check_tokenizer, documents_of
from longfocus.hf.fingerprint import tokenizer_fingerprint
from longfocus.hf.model import FocusMixin
from longfocus.inference import session_file
from longfocus.inference.answer import Answer, Asked, batches, ending
from longfocus.inference.conversation import Conversation, Mark
from longfocus.inference.generation import (
    asked,
    defaults,
    end_tokens,
    generated,
    refuse_several,
    shaping,
)
from longfocus.inference.progress import reading_bar
from longfocus.inference.prompts import Message, Prompt, Prompts, message, starting_ids
from longfocus.inference.reader import Reading
from longfocus.inference.source import Source, expected_tokens, identify
from longfocus.memory.audit import Retained, retained
from longfocus.memory.certified import Certified, certified
from longfocus.memory.document import DocumentMemory
from longfocus.memory.tiers import Rooms


class Session:
    """Documents that one model has read, questions about them, and one conversation.

    `tokenizer` may be None for models of bare token ids. `window_prefix="bos"` begins every window that is read with
    the tokenizer's BOS (also: token ids); the default, none, is LongLLaMA's. `search`, `top_k`, `retain`, `index`,
    `certify`, `memory_dtype` override the model's (`FocusConfig`). What is read and said takes at most `memory_budget`
    bytes; the rest goes to nameless files in `spill_folder`, None for the system's temporary one. `system` is the first
    message of the conversation and of every question, where the tokenizer has a chat template. Raises LongFocusError
    for a document of another model.
    """

    def __init__(
        self,
        model: FocusMixin,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        documents: Iterable[DocumentMemory] = (),
        window_prefix: str | Sequence[int] = (),
        search: Search | None = None,
        top_k: int | None = None,
        retain: float | None = None,
        index: str | None = None,
        certify: bool | None = None,
        memory_dtype: str | None = None,
        memory_budget: int | None = None,
        spill_folder: str | Path | None = None,
        system: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.documents = documents_of(documents)
        self.window_prefix = starting_ids(window_prefix, tokenizer)
        chosen = {"search": search, "top_k": top_k, "retain": retain, "index": index}
        self._search: dict[str, Any] = {**chosen, "certify": certify, "memory_dtype": memory_dtype}
        self._searches = FocusCache(model, **self._search).searches
        self.rooms = Rooms(memory_budget, spill_folder)
        self._shared = {"searches": self._searches, "allocate": self.rooms.allocate}
        self._empty_cache = partial(FocusCache, model, **self._search, **self._shared)
        self._prompts = Prompts(tokenizer, system)
        self._generated = partial(generated, model, self._prompts)
        self._unfinished: dict[object, Reading] = {}
        self._conversation = Conversation(self.cache())

    def cache(self) -> FocusCache:
        """A fresh window that sees all documents, for `model(..., past_key_values=)` and `model.generate`."""
        return self._seeing(self._empty_cache())

    def _seeing(self, cache: FocusCache) -> FocusCache:
        if any(document.description.read_with.tokenizer for document in self.documents):
            own = tokenizer_fingerprint(self.tokenizer)
            for document in self.documents:
                check_tokenizer(document, own)
        cache.see_documents(self.model, self.documents)
        return cache

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(document.tokens for document in self.documents)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of all documents."""
        return sum(document.nbytes for document in self.documents)

    @property
    def retained(self) -> dict[int, Retained]:
        """What approximate search keeps of the attention on the memory, by memory layer, measured on some queries."""
        return retained(self._searches)

    @property
    def certified(self) -> dict[int, Certified]:
        """What search with `certify` has proven to miss at most, by memory layer."""
        return certified(self._searches)

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said in the conversation: `role` and `content` of every message."""
        return self._conversation.messages

    def read(
        self, source: Source, name: str | None = None, *, progress: bool | None = None
    ) -> DocumentMemory:
        """Read a text, a Path, an iterable of texts, or token ids `[tokens]` into one more document.

        A `str` is always text. Shows a progress bar on a terminal (`progress` true: always, false: never). Interrupted
        by Ctrl-C, the same call goes on at the last finished window.
        """
        key = identify(source)
        reading = self._unfinished.get(key) or Reading(
            self.model,
            self.tokenizer,
            source,
            name,
            self.window_prefix,
            {**self._search, **self._shared},
        )
        self._unfinished[key] = reading
        try:
            with reading_bar(reading.name, expected_tokens(source), is_shown=progress) as report:
                document = reading.run(report)
        except LongFocusError:
            # it would fail again; an interruption is what can be continued
            del self._unfinished[key]
            raise
        self.documents.append(document)
        del self._unfinished[key]
        return document

    def forget(self, name: str) -> None:
        """Leave out all documents of that name: later answers are those of never having read them."""
        kept = [document for document in self.documents if document.name != name]
        if len(kept) == len(self.documents):
            raise LongFocusError(
                f"This session has no document {name!r}. It has: "
                f"{', '.join(repr(document.name) for document in self.documents) or 'none'}."
            )
        self.documents = kept

    def fork(self) -> "Session":
        """Another session that shares documents and conversation; either goes on alone, in the same thread."""
        made = copy(self)
        made.documents = list(self.documents)
        made._unfinished = {}
        return made

    def mark(self) -> Mark:
        """What is known now, for `rewind`: it shares the memory, and keeps the window of its time."""
        return Mark(tuple(self.documents), self._conversation)

    def rewind(self, mark: Mark) -> None:
        """Forget everything that was read and said since the mark."""
        self.documents = list(mark.documents)
        self._conversation = mark.conversation

    def save(self, path: str | Path) -> None:
        """Write the conversation, its memory, and references to the documents into one file.

        Documents that have no file yet are written into the library beside it, `PATH.documents`. Raises
        LongFocusError if something cannot be written.
        """
        self.documents = session_file.save(
            Path(path),
            self.model,
            self.tokenizer,
            self.documents,
            self._conversation,
            self._settings(),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: FocusMixin,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        documents: Iterable[DocumentMemory] = (),
        **budget: Any,
    ) -> Self:
        """A saved session, which goes on where it stopped (up to rounding: its memory lies in other pieces).

        `memory_budget` and `spill_folder` are not saved.

        Its documents are found where they were, or among `documents` (a library, say). Raises LongFocusError for
        another model or tokenizer, and for a document that is missing or was changed.
        """
        saved = session_file.load(Path(path), model, tokenizer, documents_of(documents))
        try:
            made = cls(model, tokenizer, documents=saved.documents, **saved.settings, **budget)
        except TypeError as error:
            raise LongFocusError(f"{path} has settings that make no sense ({error}).") from error
        made._conversation = saved.conversation
        made._conversation.cache.share(made._searches, made.rooms.allocate)
        return made

    def _settings(self) -> dict[str, Any]:
        system = next((m["content"] for m in self._prompts.system), None)
        return {"window_prefix": list(self.window_prefix), "system": system, **self._search}

    def generate(self, prompt: Prompt, **kwargs: Any) -> Any:
        """`model.generate` on a prompt, a batch of them, or token ids `[batch, tokens]`, seeing all documents."""
        inputs = self._prompts.padded(self._prompts.rows(prompt), self.model.device)
        kwargs = {**defaults(self.model, self._prompts), **kwargs}
        return self.model.generate(**inputs, past_key_values=self.cache(), **kwargs)

    @overload
    def ask(self, question: str, max_new_tokens: int = ..., **kwargs: Any) -> Answer: ...
    @overload
    def ask(
        self,
        question: Sequence[str] | list[list[int]] | Tensor,
        max_new_tokens: int = ...,
        **kwargs: Any,
    ) -> list[Answer]: ...

    def ask(
        self, question: Prompt, max_new_tokens: int = 128, **kwargs: Any
    ) -> Answer | list[Answer]:
        """Answer a question, or many as one batch that shares the memory; greedy unless `kwargs` say otherwise.

        The tokenizer's chat template is used where there is one, otherwise the text is simply continued. Each question
        stands alone in a fresh window, and sees nothing of the conversation. Questions of different length that do not
        fit it with their answers are answered in batches of equal length, since padding would move the borders of
        their windows. `kwargs` go to `generate`.
        """
        refuse_several(self.model, kwargs)
        rows = self._prompts.rows(question, is_question=True)
        window = self.model.focus.config.window
        answers: dict[int, Answer] = {}
        for batch in batches([len(row) for row in rows], window - max_new_tokens):
            prompts = [rows[row] for row in batch]
            new = self._generated(self.cache(), prompts, max_new_tokens, kwargs)
            for row, ids in zip(batch, new, strict=True):
                replay = Asked(
                    self.model,
                    partial(self._empty_cache, tuple(self.documents)),
                    tuple(rows[row]),
                    shaping(kwargs),
                )
                answers[row] = Answer(self._prompts.decode(ids), tuple(ids), replay)
        ordered = [answers[row] for row in range(len(rows))]
        return ordered[0] if isinstance(question, str) else ordered

    def chat(self, said: str, max_new_tokens: int = 512, **kwargs: Any) -> Answer:
        """Answer in the session's conversation, which remembers everything said before, whatever its length.

        Greedy unless `kwargs`, which go to `generate` (`streamer=`, `do_sample=`, ...), say otherwise. A turn that is
        interrupted leaves the conversation as it was.
        """
        refuse_several(self.model, kwargs)
        if (asked(self.model, kwargs, "num_beams") or 1) != 1:
            raise LongFocusError("A conversation has one row. Leave out num_beams.")
        before = self._conversation
        last = ending(before.ids, end_tokens(self.model, kwargs))
        prompt = (*before.ids, *self._prompts.turn(before.messages, said, last))
        cache = self._seeing(before.begin_turn())
        (ids,) = self._generated(cache, [list(prompt)], max_new_tokens, kwargs)
        text = self._prompts.decode(ids)
        start = self._seeing(before.begin_turn())
        first = () if before.messages else tuple(self._prompts.system)
        self._conversation = before.ended(
            cache,
            (*prompt, *ids),
            (*first, message("user", said), message("assistant", text)),
        )
        return Answer(text, tuple(ids), Asked(self.model, start.fork, prompt, shaping(kwargs)))
