"""A conversation: what was said, as messages and as tokens, and the model's memory of it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from longfocus.hf.cache import FocusCache
from longfocus.inference.prompts import Message
from longfocus.memory.document import DocumentMemory


@dataclass(frozen=True, eq=False)
class Conversation:
    """One state of a conversation. It is never changed: every turn makes a new one, which shares all that is earlier.

    `ids` are all tokens so far. The last one of an answer was generated and not yet read, so that `cache` may hold one
    token less.
    """

    cache: FocusCache
    ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()

    def begin_turn(self) -> FocusCache:
        """A cache to write to, that goes on from here."""
        return self.cache.fork()

    def ended(
        self, cache: FocusCache, ids: tuple[int, ...], messages: tuple[Message, ...]
    ) -> "Conversation":
        return replace(self, cache=cache, ids=ids, messages=(*self.messages, *messages))


class Mark(NamedTuple):
    """What a session knew at some time, to go back to."""

    documents: tuple[DocumentMemory, ...]
    conversation: Conversation
