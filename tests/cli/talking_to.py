"""The conversation that `longfocus chat` must have, with the same model that was never in a folder."""

from pathlib import Path
from typing import Any

from longfocus import DocumentMemory, Session
from small import byte_tokenizer, small_model

TOKENS = 5
MODEL = ("--max-new-tokens", str(TOKENS))


def session(told: Path, **settings: Any) -> Session:
    documents = [DocumentMemory.load(told)]
    return Session(small_model(), byte_tokenizer(chat=True), documents=documents, **settings)
