"""What one forward pass of an attached model tells its memory layers; it travels in kwargs, or in the cache."""

from dataclasses import dataclass, field

from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core.additional import AdditionalContexts
from longfocus.hf.cache import FocusCache
from longfocus.hf.rotary import CosSin, Rotary, identity
from longfocus.hf.trace import Trace


class PassDone(Exception):
    """The last memory layer has stored a window that is only read, or has looked; nothing after it can matter."""


@dataclass(frozen=True)
class Call:
    """What one forward pass of an attached model tells its memory layers."""

    config: FocusConfig
    cache: FocusCache | None = None
    contexts: AdditionalContexts | None = None
    """Other rows that a row sees in a crossbatch, checked."""
    stops_after: int | None = None
    """Layer after whose keys and values the pass may stop, in a window that is only read."""
    trace: Trace | None = None
    traced: int = 0
    """How many of the pass's last tokens are recorded in `trace`."""
    looks_last: int | None = None
    """Layer after whose looks the pass may stop, for only its `trace` is wanted; set where tokens are `traced`."""
    passed: frozenset[str] = frozenset()
    """Names of keyword arguments that the caller of the model passed down; they are not the attention's."""
    _identities: list[tuple[Tensor, CosSin]] = field(default_factory=list, repr=False)

    def identity(self, rotation: CosSin) -> CosSin:
        """The rotation that changes nothing; layers share one where they share their rotation."""
        for cos, made in self._identities:
            if cos is rotation[0]:
                return made
        made = identity(rotation)
        self._identities.append((rotation[0], made))
        return made


@dataclass(frozen=True)
class LayerCall:
    """A `Call` at one memory layer, with the true rotation that the hook withheld from the module."""

    call: Call
    layer: int
    rotary: Rotary
    position_embeddings: CosSin
