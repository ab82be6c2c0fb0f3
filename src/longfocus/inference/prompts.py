"""From texts to token ids: questions, turns of a conversation, left-padded batches."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.inference.given import prefix_of, questions_of

Prompt = str | Sequence[str] | list[list[int]] | Tensor

# Stands for an answer in a chat template, to find what the template writes behind it.
_ANSWER = "\ue000answer\ue001"
Message = dict[str, str]


class Prompts:
    """How one tokenizer, or none, makes token ids of what the user says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, system: str | None) -> None:
        if isinstance(tokenizer, str):
            raise LongFocusError(
                f"A session needs a tokenizer itself. Got {tokenizer!r}. Load it: "
                f"longfocus.tokenizer({tokenizer!r})."
            )
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
        found = questions_of(given)
        if not isinstance(found[0], str):
            return cast(list[list[int]], found)
        if self.tokenizer is None:
            raise LongFocusError(
                "This session has no tokenizer, so it takes token ids [batch, tokens] only. Got text."
            )
        texts = cast(list[str], found)
        rows = [self._first(text) if is_question else self._plain(text) for text in texts]
        # a BOS alone may begin a text, and is no question
        if not all(rows) or (is_question and not all(texts)):
            raise LongFocusError("A question must hold at least one token. Got an empty text.")
        return rows

    def turn(self, messages: Sequence[Message], said: str, last: int | None) -> list[int]:
        """Token ids of what follows the conversation so far when the user says something.

        `messages` are those before; `last` is the last token generated, which may have ended the answer already.
        """
        if not isinstance(said, str):
            raise LongFocusError(
                f"What is said in a conversation is one text. Got {said!r}. Use ask for several questions."
            )
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
        from jinja2.exceptions import TemplateError

        given: Any = list(messages)
        try:
            rendered = self.tokenizer.apply_chat_template(
                given, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(each["role"] for each in messages)
            raise LongFocusError(
                f"The tokenizer's chat template does not take these messages ({roles}): {error}. Leave out system= "
                "if it knows no system message, or give the tokenizer another chat_template."
            ) from error
        return str(rendered)

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
    return prefix_of(given)
