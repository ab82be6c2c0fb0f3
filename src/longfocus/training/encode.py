"""Records as tokens: which tokenizer, what ends a document, and what is left out.

A text is tokenised without special tokens, in the same pieces as a text that a session reads, and the tokenizer's
end-of-text token ends it. Its first token is not learnt: nothing of the document says what it will be. Chats are
what the template makes of them, with their own ends (`chat.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.inference.source import pieces
from longfocus.training.chat import Encoded, encode_chat
from longfocus.training.records import LeftOut, Record

BATCH_CHARACTERS = 2**20
BATCH_RECORDS = 512
NOTHING = np.zeros(0, np.int32)


class EncodedRecord(NamedTuple):
    """A document with tokens, and how far its source has been read with it."""

    encoded: Encoded
    done: int


class Encoder:
    """A tokenizer and what it adds to a document."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int | None = None,
        append_eos: bool = True,
        prepend_bos: bool = False,
    ) -> None:
        if vocab_size is not None and len(tokenizer) > vocab_size:
            raise LongFocusError(
                f"The tokenizer has {len(tokenizer)} entries, but the model's vocabulary has {vocab_size}. Every token "
                "must be in the model's vocabulary. Use the model's own tokenizer, or enlarge the model's embeddings."
            )
        if prepend_bos and tokenizer.bos_token_id is None:
            raise LongFocusError(
                "prepend_bos=True, but the tokenizer has no beginning-of-text token. Leave it out, or set "
                "tokenizer.bos_token."
            )
        self._tokenizer = tokenizer
        has_end = append_eos and tokenizer.eos_token_id is not None
        self._before = np.array([tokenizer.bos_token_id] if prepend_bos else [], np.int32)
        self._after = np.array([tokenizer.eos_token_id] if has_end else [], np.int32)

    def identity(self) -> dict[str, Any]:
        """JSON that changes when the tokens of a record do."""
        return {
            "tokenizer": tokenizer_fingerprint(self._tokenizer),
            "before": self._before.tolist(),
            "after": self._after.tolist(),
        }

    def encode(self, records: Iterable[Record], left_out: LeftOut) -> Iterator[EncodedRecord]:
        """The documents in order; those without anything to learn are left out and counted."""
        for batch in _batches(records):
            texts = [record.content for record in batch if isinstance(record.content, str)]
            encoded_texts = iter(self._texts(texts))
            for record in batch:
                if isinstance(record.content, str):
                    encoded = next(encoded_texts)
                else:
                    encoded = encode_chat(self._tokenizer, record.content, record.where)
                if why := self._why_useless(encoded):
                    left_out.add(record.where, why)
                else:
                    yield EncodedRecord(encoded, record.done)

    def _texts(self, texts: list[str]) -> list[Encoded]:
        """All texts in one call of the tokenizer, which works on them side by side."""
        cut = [list(pieces([text])) if _is_text(text) else [] for text in texts]
        flat = [piece for of_text in cut for piece in of_text]
        if not flat:
            return [Encoded(NOTHING, None)] * len(texts)
        given = self._tokenizer(
            flat, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        coming = (np.array(ids, np.int32) for ids in given["input_ids"])
        return [self._joined([next(coming) for _ in of_text]) for of_text in cut]

    def _joined(self, parts: list[np.ndarray]) -> Encoded:
        """The parts of one text with what stands before and after it; nothing stays nothing."""
        if not any(map(len, parts)):
            return Encoded(NOTHING, None)
        return Encoded(np.concatenate([self._before, *parts, self._after]), None)

    @staticmethod
    def _why_useless(encoded: Encoded) -> str | None:
        if not len(encoded.tokens):
            return "no text"
        if encoded.loss_mask is not None and not encoded.loss_mask.any():
            return "a chat without an answer"
        return None


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides the tokens of a text or a chat."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # set by whoever called it last
        rules |= {"padding": None, "truncation": None}
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    told = {
        "rules": rules,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in groups of bounded size, at least one in each."""
    waiting, characters = [], 0
    for record in records:
        waiting.append(record)
        characters += len(record.content)
        if characters >= BATCH_CHARACTERS or len(waiting) == BATCH_RECORDS:
            yield waiting
            waiting, characters = [], 0
    if waiting:
        yield waiting


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
