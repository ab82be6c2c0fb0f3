"""From texts to token ids: questions, turns of a conversation, left-padded batches."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError

Prompt = str | Sequence[str] | list[list[int]] | Tensor

# Stands for an answer in a chat template, to find what the template writes behind it.
_ANSWER = "\ue000answer\ue001"
Message = dict[str, str]


class Prompts:
    """How one tokenizer, or none, makes token ids of what the user says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, system: str | None) -> None:
        self.tokenizer = tokenizer
        self.system: list[Message] = [] if system is None else [message("system", system)]
        if system is not None and not self.has_template:
            raise LongFocusError(
                "A system message needs a tokenizer with a chat template. Leave out system=, or put the text into the "
                "question."
            )

    @property
    def has_template(self) -> bool:
        return self.tokenizer is not None and bool(self.tokenizer.chat_template)

    @property
    def pad(self) -> int:
        if self.tokenizer is None:
            return 0
        return self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0

    def rows(self, given: Prompt, *, is_question: bool = False) -> list[list[int]]:
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
        rows = [self._first(text) if is_question else self._plain(text) for text in texts]
        if not rows or not all(rows):
            raise LongFocusError("A question must hold at least one token. Got an empty text.")
        return rows

    def turn(self, messages: Sequence[Message], said: str, last: int | None) -> list[int]:
        """Token ids of what follows the conversation so far when the user says something.

        `messages` are those before; `last` is the last token generated, which may have ended the answer already.
        """
        if not messages:
            return self.rows(said, is_question=True)[0]
        if self.tokenizer is None or not said:
            raise LongFocusError(
                "A conversation needs a tokenizer, and something that is said. Got none or ''."
            )
        if not self.has_template:
            return self._ids(said)
        whole = self._render([*messages[:-1], message("assistant", _ANSWER), message("user", said)])
        if _ANSWER not in whole:
            raise LongFocusError(
                "The tokenizer's chat template does not repeat earlier answers, so a conversation cannot go on with "
                "it. Use ask, where every question stands alone."
            )
        behind = whole.rpartition(_ANSWER)[2]
        if last is not None:
            # the model itself wrote the token that ends an answer
            behind = behind.removeprefix(str(self.tokenizer.decode([last])))
        return self._ids(behind)

    def padded(self, rows: list[list[int]], device: torch.device) -> dict[str, Tensor]:
        """Token ids and mask `[batch, tokens]`, padded on the left."""
        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def decode(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _first(self, text: str) -> list[int]:
        if not self.has_template or not text:
            return self._plain(text)
        # the template writes the special tokens itself
        return self._ids(self._render([*self.system, message("user", text)]))

    def _render(self, messages: Sequence[Message]) -> str:
        assert self.tokenizer is not None
        given: Any = list(messages)
        return str(
            self.tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
        )

    def _plain(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=True)

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        assert self.tokenizer is not None
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LongFocusError(
                f"What was said holds {text[error.start]!r}, half of a surrogate pair, which is no character. "
                "Decode it with its true encoding."
            ) from error
        given = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(given["input_ids"])


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def starting_ids(
    given: str | Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """Token ids that begin every window that is read: given, or "bos"."""
    if given == "bos":
        if tokenizer is None or tokenizer.bos_token_id is None:
            raise LongFocusError(
                "window_prefix='bos' needs a tokenizer with a BOS token. Give token ids instead."
            )
        return (tokenizer.bos_token_id,)
    if isinstance(given, str):
        raise LongFocusError(f"window_prefix must be 'bos' or token ids. Got {given!r}.")
    return tuple(given)
