"""Chat messages as tokens: the tokenizer's own template, and a loss mask of 1 on the assistant's answers only.

Templates with `{% generation %}` markers say themselves what the assistant wrote. With others an answer is what a
prefix of the chat gains by it, each prefix rendered on its own:

    render(messages[:i] + generation prompt)    <user> Why? <end><assistant>
    render(messages[:i + 1])                    <user> Why? <end><assistant> Because. <end>
                                                                            ^^^^^^^^^^^^^^ learnt
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoded(NamedTuple):
    """One document as tokens."""

    tokens: np.ndarray
    """`[tokens]` int32."""
    loss_mask: np.ndarray | None
    """`[tokens]` uint8; None: all but the first token."""


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str
) -> Encoded:
    """The rendered chat, tokenised; `where` names it in messages of errors."""
    _check(tokenizer, messages, where)
    encoded = _by_markers(tokenizer, messages, where)
    return encoded or _by_prefixes(tokenizer, messages, where)


def _check(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str) -> None:
    if not tokenizer.chat_template:
        raise LongFocusError(
            f"{where} is a chat, but the tokenizer has no chat template. Chats are rendered by the tokenizer's own. "
            "Set tokenizer.chat_template, or name a field with texts (--text-field, or text_field= of a Source)."
        )
    if not tokenizer.is_fast:
        raise LongFocusError(
            f"{where} is a chat, and {type(tokenizer).__name__} does not say which characters a token stands for. Use "
            "a fast tokenizer."
        )
    without = [place for place, message in enumerate(messages) if "role" not in message]
    if without or not messages:
        raise LongFocusError(
            f"{where} is no chat: {f'message {without[0]} has no role' if without else 'it has no messages'}. "
            'Every message needs "role" and "content".'
        )


def _by_markers(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str
) -> Encoded | None:
    """With the template's own marks; None where it has none, or has none around these answers."""
    if not GENERATION.search(tokenizer.get_chat_template()):
        return None
    given = _render(
        tokenizer,
        messages,
        where,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = np.array(given["assistant_masks"], np.uint8)
    return Encoded(np.array(given["input_ids"], np.int32), mask) if mask.any() else None


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str
) -> Encoded:
    text = _render(tokenizer, messages, where, tokenize=False)
    given = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = np.array(given["input_ids"], np.int32)
    # Offsets of some tokenizers leave out the space that a token begins with: it begins where the one before ended.
    ends = np.array(given["offset_mapping"], np.int64).reshape(-1, 2)[:, 1]
    begins = np.maximum.accumulate(np.concatenate(([0], ends)))[:-1]
    mask = np.zeros(len(tokens), np.uint8)
    for start, end in _answers(tokenizer, messages, text, where):
        mask[(begins >= start) & (begins < end)] = 1
    return Encoded(tokens, mask)


def _answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], text: str, where: str
) -> Iterator[tuple[int, int]]:
    """First and past-the-end character of each answer in the rendered chat."""
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = (
            _render(tokenizer, messages[:place], where, tokenize=False, add_generation_prompt=True)
            if place
            else ""
        )
        until = _render(tokenizer, messages[: place + 1], where, tokenize=False)
        if not (text.startswith(until) and until.startswith(before)):
            raise LongFocusError(
                f"{where}: it cannot be told which tokens are answer {place}, because the chat template renders "
                "the messages before it differently once it is there. "
                "Use a template with {% generation %} markers around answers."
            )
        yield len(before), len(until)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str, **options: Any
) -> Any:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError) as error:
        raise LongFocusError(
            f"{where}: the chat template does not take these messages ({error}). Messages need the roles and fields "
            "that the template knows, usually system, user and assistant with a content."
        ) from error
