"""`Session`: documents in a model's memory, and questions about them.

    read(source)      a text becomes a document memory, read in isolation
    ask(question)     a question, alone in a fresh window, that sees all documents
    generate(prompt)  the library's generate with the documents in memory

Documents are never part of the prompt: they do not count in `get_seq_length` or attention masks, so `generate` cannot
cut a question away, and a batch of questions shares them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.config import Search
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.model import FocusMixin
from longfocus.hf.trace import Trace
from longfocus.inference.answer import Answer, batches, spans, until_end
from longfocus.inference.progress import reading_bar
from longfocus.inference.reader import Reading
from longfocus.inference.source import Source, expected_tokens, identify
from longfocus.memory.document import DocumentMemory


class Session:
    """Documents that one model has read, and questions about them.

    `tokenizer` may be None for models of bare token ids. `window_prefix="bos"` begins every window that is read with
    the tokenizer's BOS (also: token ids); the default, none, is LongLLaMA's. `search` and `top_k` override the model's.
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
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.documents = list(documents)
        self.window_prefix = _prefix(window_prefix, tokenizer)
        self._search = {"search": search, "top_k": top_k}
        self._unfinished: dict[object, Reading] = {}
        self.cache()

    def cache(self) -> FocusCache:
        """A fresh window that sees all documents, for `model(..., past_key_values=)` and `model.generate`."""
        return FocusCache(self.model, self.documents, **self._search)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(document.tokens for document in self.documents)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of all documents."""
        return sum(document.nbytes for document in self.documents)

    def read(
        self, source: Source, name: str | None = None, *, progress: bool | None = None
    ) -> DocumentMemory:
        """Read a text, a Path, an iterable of texts, or token ids `[tokens]` into one more document.

        A `str` is always text, a `Path` a file. Shows a progress bar on a terminal (`progress` true: always, false:
        never). Interrupted by Ctrl-C, the same call goes on at the last finished window.
        """
        key = identify(source)
        reading = self._unfinished.get(key) or Reading(
            self.model, self.tokenizer, source, name, self.window_prefix, self._search
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

    def generate(self, prompt: str | Sequence[str] | Tensor, **kwargs: Any) -> Any:
        """`model.generate` on a prompt, a batch of them, or token ids `[batch, tokens]`, seeing all documents."""
        inputs = self._padded(self._rows(prompt))
        settings = {**self._defaults(), **kwargs}
        return self.model.generate(**inputs, past_key_values=self.cache(), **settings)

    @overload
    def ask(
        self, question: str, max_new_tokens: int = ..., *, trace: int = ..., **kwargs: Any
    ) -> Answer: ...
    @overload
    def ask(
        self,
        question: Sequence[str] | list[list[int]] | Tensor,
        max_new_tokens: int = ...,
        *,
        trace: int = ...,
        **kwargs: Any,
    ) -> list[Answer]: ...

    def ask(
        self,
        question: str | Sequence[str] | list[list[int]] | Tensor,
        max_new_tokens: int = 128,
        *,
        trace: int = 0,
        **kwargs: Any,
    ) -> Answer | list[Answer]:
        """Answer a question, or many as one batch that shares the memory; greedy unless `kwargs` say otherwise.

        The tokenizer's chat template is used where there is one, otherwise the text is simply continued. Each question
        stands alone in a fresh window. Questions of different length that do not fit it with their answers are answered
        in batches of equal length, since padding would move the borders of their windows. `trace`:
        how many memory entries to name per token in `Answer.looked`.
        """
        _refuse(trace, kwargs)
        rows = self._rows(question, is_question=True)
        window = self.model.focus.config.window
        answers: dict[int, Answer] = {}
        for batch in batches([len(row) for row in rows], window - max_new_tokens):
            given = self._padded([rows[row] for row in batch])
            seen = Trace(trace) if trace else None
            extra = {} if seen is None else {"focus_trace": seen}
            settings = {"do_sample": False, **self._defaults(), **extra, **kwargs}
            sequences = self.model.generate(
                **given, past_key_values=self.cache(), max_new_tokens=max_new_tokens, **settings
            )
            new = sequences[:, given["input_ids"].shape[1] :].tolist()
            own = kwargs.get("generation_config") or self.model.generation_config
            ends = kwargs.get("eos_token_id", own.eos_token_id)
            answers |= {
                row: self._answer(until_end(new[place], ends), place, len(new[place]), seen)
                for place, row in enumerate(batch)
            }
        ordered = [answers[row] for row in range(len(rows))]
        return ordered[0] if isinstance(question, str) else ordered

    def _answer(self, ids: list[int], row: int, longest: int, trace: Trace | None) -> Answer:
        text = ""
        if self.tokenizer is not None:
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        if trace is None:
            return Answer(text, tuple(ids))
        # one call of the model a token; a long prompt takes more calls before the first
        first = len(trace.rows) - longest
        layers = len(self.model.focus.config.memory_layers)
        calls = trace.rows[first : first + len(ids)]
        return Answer(
            text, tuple(ids), tuple(spans(call[row], self.documents, layers) for call in calls)
        )

    def _defaults(self) -> dict[str, Any]:
        """A pad token where the model has none, which `generate` would warn about at every call."""
        config = self.model.generation_config
        return {} if config.pad_token_id is not None else {"pad_token_id": self._pad()}

    def _pad(self) -> int:
        found = (
            None
            if self.tokenizer is None
            else (self.tokenizer.pad_token_id or self.tokenizer.eos_token_id)
        )
        return found or 0

    def _rows(
        self, given: str | Sequence[str] | list[list[int]] | Tensor, is_question: bool = False
    ) -> list[list[int]]:
        """Token ids of every text."""
        if isinstance(given, Tensor):
            given = (given if given.dim() == 2 else given[None]).tolist()
        if isinstance(given, list) and given and isinstance(given[0], list) and all(given):
            return given
        if self.tokenizer is None:
            raise LongFocusError(
                "This session has no tokenizer, so it takes token ids [batch, tokens] only."
            )
        texts = [given] if isinstance(given, str) else cast(Sequence[str], given)
        rows = [_tokenize(self.tokenizer, text, is_question) for text in texts]
        if not rows or not all(rows):
            raise LongFocusError("A question must hold at least one token. Got an empty text.")
        return rows

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """Token ids and mask `[batch, tokens]`, padded on the left."""
        longest = max(map(len, rows))
        pad = self._pad()
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        device = self.model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _refuse(trace: int, kwargs: dict[str, Any]) -> None:
    """What `ask` cannot turn into one answer a question."""
    if kwargs.get("num_return_sequences", 1) != 1 or kwargs.get("return_dict_in_generate"):
        raise LongFocusError(
            "ask gives one answer for each question. Got num_return_sequences or return_dict_in_generate. "
            "Use Session.generate, which returns what generate does."
        )
    guesses = kwargs.get("assistant_model") or kwargs.get("prompt_lookup_num_tokens")
    if trace and (kwargs.get("num_beams", 1) != 1 or guesses):
        raise LongFocusError(
            "trace names what was looked at token by token. With beams or assisted decoding calls of the model and "
            "tokens of the answer do not correspond. Leave out num_beams, assistant_model and prompt_lookup_num_tokens."
        )


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, is_question: bool) -> list[int]:
    if is_question and tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        text = str(
            tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        )
        # the template writes the special tokens itself
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return list(tokenizer(text, verbose=False)["input_ids"])


def _prefix(
    given: str | Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    if given == "bos":
        if tokenizer is None or tokenizer.bos_token_id is None:
            raise LongFocusError(
                "window_prefix='bos' needs a tokenizer with a BOS token. Give token ids instead."
            )
        return (tokenizer.bos_token_id,)
    if isinstance(given, str):
        raise LongFocusError(f"window_prefix must be 'bos' or token ids. Got {given!r}.")
    return tuple(given)
