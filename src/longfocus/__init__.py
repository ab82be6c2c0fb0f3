"""LongFocus: a memory of millions of tokens for any Hugging Face causal language model.

The public names are imported when they are first used (PEP 562), so that `import longfocus` and
`longfocus --help` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longfocus import core as core
    from longfocus import training as training
    from longfocus.config import FocusConfig
    from longfocus.core.plans import paper_plan, published_plan
    from longfocus.errors import LongFocusError
    from longfocus.hf.attach import attach, detach
    from longfocus.hf.cache import FocusCache
    from longfocus.hf.pretrained import from_pretrained, tokenizer
    from longfocus.inference.answer import Answer
    from longfocus.inference.reader import read_document
    from longfocus.inference.session import Session
    from longfocus.memory.document import DocumentMemory
    from longfocus.memory.library import Library

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "DocumentMemory",
    "FocusCache",
    "FocusConfig",
    "Library",
    "LongFocusError",
    "Session",
    "attach",
    "detach",
    "from_pretrained",
    "paper_plan",
    "published_plan",
    "read_document",
    "tokenizer",
]

_HOMES = {
    "Answer": "longfocus.inference.answer",
    "DocumentMemory": "longfocus.memory.document",
    "FocusCache": "longfocus.hf.cache",
    "FocusConfig": "longfocus.config",
    "Library": "longfocus.memory.library",
    "LongFocusError": "longfocus.errors",
    "Session": "longfocus.inference.session",
    "attach": "longfocus.hf.attach",
    "detach": "longfocus.hf.attach",
    "from_pretrained": "longfocus.hf.pretrained",
    "paper_plan": "longfocus.core.plans",
    "published_plan": "longfocus.core.plans",
    "read_document": "longfocus.inference.reader",
    "tokenizer": "longfocus.hf.pretrained",
}


# Rooms with names of their own, such as longfocus.training.document_rows.
_ROOMS = ("core", "training")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"longfocus.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'longfocus' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
