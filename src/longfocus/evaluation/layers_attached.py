"""What every layer of a model would ask a memory, and hold in it, while the model itself stays as it is.

    attach     the candidates become memory layers with nothing in memory: every layer's window is the plain model's,
               bit for bit, so one pass serves all of them
    queries    of an evaluated window, with the log-sum-exp of their scores on the window itself
    keys       of a window that is read, as a memory would hold them

Nothing is ever found in memory, so no layer changes what later layers see. A layer's queries and keys are therefore
those that it would have as the only memory layer; with others before it, these would change its hidden states.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longfocus.config import FocusConfig
from longfocus.core.attention import Partial, nothing
from longfocus.errors import LongFocusError
from longfocus.hf.attach import attach, detach
from longfocus.hf.attention import GATE
from longfocus.hf.cache import FocusCache
from longfocus.hf.layers import attention_modules
from longfocus.hf.rotary import CosSin, Rotary
from longfocus.hf.window import MemoryLayer
from longfocus.memory import Part

SCORES = 2**24
"""Scores held at a time, in elements."""


class Scored(NamedTuple):
    """How a layer makes scores of inner products."""

    scale: float
    softcap: float | None

    def lse(
        self,
        query: Float[Tensor, "windows heads query dim"],
        key: Float[Tensor, "kv_heads keys dim"],
        bias: Float[Tensor, "query keys"] | None = None,
    ) -> Float[Tensor, "windows heads query"]:
        """Log-sum-exp of the scores of every query on all keys, in float32."""
        heads, asked, dim = query.shape[1:]
        groups, keys = heads // len(key), key.float()
        step = max(1, SCORES // (heads * asked * key.shape[1]))
        found = []
        for own in query.split(step):
            folded = own.float().view(len(own), len(key), groups * asked, dim)
            scores = folded @ keys.mT * self.scale  # (windows, kv_heads, groups * query, keys)
            if self.softcap is not None:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            scores = scores.view(len(own), heads, asked, -1)
            found.append((scores if bias is None else scores + bias).logsumexp(-1))
        return torch.cat(found)


class Asked(NamedTuple):
    """What some tokens of a window ask of a memory, in one layer."""

    query: Float[Tensor, "1 heads query dim"]
    window: Float[Tensor, "1 heads query"]
    """Log-sum-exp of their scores on the window that they stand in."""


class Candidates:
    """A model whose candidate layers are attached."""

    def __init__(self, model: Any, notes: dict[int, "_Note"], positions: str) -> None:
        self.model, self._notes, self._positions = model, notes, positions
        self.scored = _scored(model)
        """By layer, how scores are made; known before anything is measured."""

    @torch.inference_mode()
    def queries(self, window: Int[Tensor, " tokens"], places: Tensor) -> dict[int, Asked]:
        """By layer, those of the tokens at `places` of a window."""
        found: dict[int, Asked] = {}
        for layer, note in self._notes.items():
            note.take = self._taking(layer, places, found)
        try:
            self.model(
                input_ids=window[None].to(self.model.device),
                past_key_values=FocusCache(self.model),
                last_context_length=len(window),
                logits_to_keep=1,
                use_cache=True,
            )
        finally:
            for note in self._notes.values():
                note.take = None
        return found

    def _taking(self, layer: int, places: Tensor, found: dict[int, Asked]) -> "Take":
        def take(looked: Looked) -> None:
            query, key = looked.plain if self._positions == "none" else looked.turned
            own = places.to(query.device)
            chosen = query[:, :, own]
            lse = self.scored[layer].lse(chosen, key[0], _bias(looked.mask, own, key.shape[2]))
            if looked.sinks is not None:
                lse = torch.logaddexp(lse, looked.sinks.to(lse)[:, None])
            found[layer] = Asked(chosen, lse)

        return take

    @torch.inference_mode()
    def keys(self, rows: Int[Tensor, "rows tokens"], prefix: int) -> dict[int, Tensor]:
        """By layer `[kv_heads, tokens, dim]`: of windows, a row each, without the first `prefix` tokens of each."""
        cache = FocusCache(self.model)
        self.model.read_window(cache, rows.to(self.model.device))
        found = {}
        for layer in self._notes:
            window = cache.windows[layer]
            assert isinstance(window, MemoryLayer)
            if self._positions == "none":
                window.positions = "none"
            key, _ = window.pairs_to_remember()
            # (rows, kv_heads, tokens, dim) -> (kv_heads, rows * tokens, dim)
            found[layer] = key[:, :, prefix:].transpose(0, 1).flatten(1, 2)
        return found


@contextmanager
def candidates(
    model: Any, layers: Sequence[int], window: int, positions: str
) -> Iterator[Candidates]:
    """`layers` attached meanwhile, in windows of so many tokens; afterwards the model is what it was.

    A model that has a memory keeps its weights and, where its memory layers have no positions, windows without them;
    its memory stays empty.
    """
    modules = attention_modules(model)
    # a stock model has no such attribute
    own: FocusConfig | None = getattr(getattr(model, "focus", None), "config", None)
    unturned = own.memory_layers if own is not None and own.positions == "none" else ()
    gates = {i: getattr(m, GATE) for i, m in modules.items() if hasattr(m, GATE)}
    if own is not None:
        detach(model)
    handles = []
    try:
        _attach(
            model, FocusConfig(memory_layers=tuple(sorted({*layers, *unturned})), window=window)
        )
        notes = {i: _Note(is_turned=i not in unturned) for i in model.focus.rotaries}
        handles += [
            modules[i].register_forward_pre_hook(note, with_kwargs=True)
            for i, note in notes.items()
        ]
        yield Candidates(model, {i: notes[i] for i in layers}, positions)
    finally:
        for handle in handles:
            handle.remove()
        # it is not attached if it could not be
        if getattr(model, "focus", None) is not None:
            detach(model)
        if own is not None:
            _attach(model, own, verify=False)
            for layer, gate in gates.items():
                setattr(modules[layer], GATE, gate)


def _attach(model: Any, config: FocusConfig, *, verify: bool = True) -> None:
    # says that it is known, so that attach does not warn of a memory that nobody trained
    model.config.focus = config.to_dict()
    try:
        attach(model, config, verify=verify)
    except LongFocusError:
        model.config.__dict__.pop("focus", None)
        raise


class Looked(NamedTuple):
    """How a layer looks at its window."""

    plain: tuple[Tensor, Tensor]
    """Queries and keys, un-rotated."""
    turned: tuple[Tensor, Tensor]
    """The same as the window has them."""
    mask: Tensor | None
    sinks: Tensor | None
    """Scores of every head that take attention and give nothing (gpt-oss)."""


Take = Callable[[Looked], None]


class _Note:
    """Forward pre-hook of a candidate's attention module, behind the memory's own."""

    def __init__(self, *, is_turned: bool) -> None:
        self.is_turned = is_turned
        self.take: Take | None = None

    def __call__(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        focus, mask = kwargs["focus_layer"], kwargs.get("attention_mask")
        # only gpt-oss has them
        sinks = getattr(module, "sinks", None)

        def tell(plain: tuple[Tensor, Tensor], turned: tuple[Tensor, Tensor]) -> None:
            if self.take is not None:
                self.take(Looked(plain, turned, mask, sinks))

        own: Rotary = focus.rotary
        is_turned = self.is_turned and own.is_used
        known = own.apply, own.rotary_dim, own.attention_scaling
        telling = _Telling(*known, is_used=True, is_turned=is_turned, tell=tell)
        return args, {**kwargs, "focus_layer": replace(focus, rotary=telling)}


@dataclass(frozen=True)
class _Telling(Rotary):
    """The model's own rotation, or none, that tells what it was given and what came out."""

    is_turned: bool
    tell: Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], None]

    def rotate(
        self, query: Tensor, key: Tensor, position_embeddings: CosSin
    ) -> tuple[Tensor, Tensor]:
        plain = query, key
        turned = super().rotate(query, key, position_embeddings) if self.is_turned else plain
        self.tell(plain, turned)
        return turned


def _bias(mask: Tensor | None, places: Tensor, keys: int) -> Float[Tensor, "query keys"]:
    """What is added to the scores of the tokens at `places` on their window: -inf where they do not look."""
    if mask is None:
        is_later = torch.arange(keys, device=places.device) > places[:, None]
        return torch.zeros(is_later.shape, device=places.device).masked_fill_(is_later, -torch.inf)
    own = mask[0, 0, places, :keys]
    if own.dtype == torch.bool:
        return torch.zeros(own.shape, device=own.device).masked_fill_(~own, -torch.inf)
    return own.float()


def _scored(model: Any) -> dict[int, Scored]:
    """Learned from one token that looks into a memory which answers nothing."""
    found: dict[int, Scored] = {}

    def search_of(layer: int) -> Any:
        def search(
            query: Tensor, parts: Sequence[Part], *, scale: float, softcap: float | None = None
        ) -> Partial:
            found[layer] = Scored(scale, softcap)
            return nothing(query)

        return search

    searches = {layer: search_of(layer) for layer in model.focus.rotaries}
    cache = FocusCache(model, searches=searches)
    pair = torch.zeros(1, 1, 1, 1)
    for layer in searches:
        window = cache.windows[layer]
        assert isinstance(window, MemoryLayer)
        window.documents = [Part(pair, pair)]
    with torch.inference_mode():
        model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device),
            past_key_values=cache,
        )
    return found
