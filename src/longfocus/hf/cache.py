"""`FocusCache`: the window of every layer, and the memory of the memory layers, as a transformers cache.

    seen     |<------- evicted: start ------->|<- local ->|  new tokens
    layers   lost (memory layers: in memory)    window       of this call

`get_seq_length` counts all tokens ever seen, because `generate` slices its inputs by it. The masks that a model makes
are those of the window alone. Documents are no part of either: they are looked into, never counted.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.config import Search as SearchName
from longfocus.core.positions import Origin, find_origin
from longfocus.errors import LongFocusError
from longfocus.hf.cached_pairs import CachedPairs
from longfocus.hf.documents import check_documents, documents_of, parts_of
from longfocus.hf.window import MemoryLayer, WindowLayer
from longfocus.memory import Search, Store, make_search
from longfocus.memory.document import DocumentMemory
from longfocus.memory.tiers import Allocate, in_memory

if TYPE_CHECKING:
    from longfocus.hf.call import Call


class FocusCache(CachedPairs):
    """Window and memory of one batch of conversations with an attached model; updated in place.

    `documents` are read-only and shared by all rows. `search`, `top_k`, `retain`, `index`, `certify`, `memory_dtype`
    override the model's `FocusConfig` for this cache alone. `searches` are those of another cache, by memory layer, to
    go on with what they have learned. `allocate` gives room for what is evicted, such as that of `Rooms` with a budget.
    Raises LongFocusError if the model has no memory attached, or a document was read by a model with other memory
    layers or positions.
    """

    def __init__(
        self,
        model: Any,
        documents: Iterable[DocumentMemory] = (),
        *,
        search: SearchName | None = None,
        top_k: int | None = None,
        retain: float | None = None,
        index: str | None = None,
        certify: bool | None = None,
        memory_dtype: str | None = None,
        config: FocusConfig | None = None,
        searches: Mapping[int, Search] | None = None,
        allocate: Allocate = in_memory,
    ) -> None:
        attachment = getattr(model, "focus", None)
        if attachment is None:
            raise LongFocusError(
                f"FocusCache needs a model with memory attached. Got {type(model).__name__}. "
                "Call longfocus.attach(model, longfocus.FocusConfig(...)) first."
            )
        self.config = (config or attachment.config).changed(
            search=search,
            top_k=top_k,
            retain=retain,
            index=index,
            certify=certify,
            memory_dtype=memory_dtype,
        )
        narrow = self.config.memory_dtype
        dtype = None if narrow is None else getattr(torch, narrow)
        self.windows = [
            MemoryLayer(
                attachment.rotaries[i],
                self.config.positions,
                store=Store(
                    dtype,
                    is_clustered=self.config.search == "clustered",
                    allocate=allocate,
                ),
            )
            if i in attachment.rotaries
            else WindowLayer()
            for i in range(attachment.num_layers)
        ]
        super().__init__(layers=list(self.windows))
        self.searches = dict(searches or {})
        for layer in attachment.rotaries:
            self.searches.setdefault(layer, make_search(self.config))
        self.allocate = allocate
        self.documents: tuple[DocumentMemory, ...] = ()
        self.device = model.device
        self.see_documents(model, documents)
        self.call: Call | None = None
        """What the forward pass in progress passes down to the attention of memory layers."""
        self.is_assisted = False
        """Whether `generate` is decoding with an assistant, whose guesses come with the tokens given."""
        self._lines: tuple[int, ...] | None = None
        self._valid: Tensor | None = None
        self._origin: Origin | None = None
        self._length = 0

    @property
    def local(self) -> int:
        """Tokens in the window."""
        return self._length - self.start

    @property
    def start(self) -> int:
        """Tokens that have left the window."""
        return self.windows[0].start

    def has_memory(self) -> bool:
        """Whether any memory layer has something to look into beyond the window."""
        return any(layer.parts() for layer in self.windows if isinstance(layer, MemoryLayer))

    def share(self, searches: Mapping[int, Search], allocate: Allocate) -> None:
        """Go on with the searches of another cache, and with its room for what is evicted."""
        self.searches, self.allocate = dict(searches), allocate
        for layer in self.windows:
            if isinstance(layer, MemoryLayer):
                layer.store.allocate = allocate

    def fork(self) -> "FocusCache":
        """Another conversation with the same past: window and memory are shared, either may go on without the other."""
        made = copy(self)
        made.windows = [layer.fork() for layer in self.windows]
        made.layers = list(made.windows)
        made.call = made._undo = None
        return made

    @property
    def origin(self) -> Origin | None:
        """Where each row's window starts, in the numbering of positions; None for an empty window."""
        return self._origin

    def restore(self, length: int, origin: Origin | None) -> None:
        """Take the rest of a state that was saved, after its windows did (cache_state.py)."""
        self._length, self._origin, self._lines = length, origin, (0,)

    def see_documents(self, model: Any, documents: Iterable[DocumentMemory]) -> None:
        """Look into other documents from now on.

        They are merged in an order of their own, so that the order in which they are given changes no bit.
        """
        documents = tuple(sorted(documents_of(documents), key=lambda document: document.order))
        check_documents(model, self.config, documents)
        parts = parts_of(model, documents)
        self.documents = documents
        for number, layer in enumerate(self.windows):
            if isinstance(layer, MemoryLayer):
                layer.documents = [own[number] for own in parts]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """All conversation tokens ever seen: evicted and in the window."""
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.windows[layer_idx].local

    def place(self, positions: Tensor, is_real: Tensor | None) -> Tensor:
        """Offsets in the window `[batch, new]` of new tokens at `positions`, those of the caller's numbering."""
        if self._origin is None or (is_real is not None and not bool(self._origin.is_placed.all())):
            # under the published rules a window may be longer than config.window
            window = max(self.config.window, self.local + positions.shape[1])
            self._origin = find_origin(positions, is_real, window, self._origin)
        return (positions - self._origin.position).clamp_(min=0)

    def extend(self, tokens: int, valid: Tensor | None) -> None:
        """Account for `tokens` new tokens; `valid` `[batch, local + tokens]` marks what is real in the window."""
        if valid is None and self._valid is not None:
            valid = torch.nn.functional.pad(self._valid, (0, tokens), value=True)
        self._valid = valid
        self._length += tokens

    def see(self, valid: Tensor | None) -> None:
        """Take the caller's word of what is real among the tokens already in the window; None is all of them."""
        self._valid = valid

    def tell_rows_apart(self, inputs: list[Tensor]) -> None:
        """Take note of which neighbouring rows still have the same history: they will share lines of memory."""
        rows = max((len(tensor) for tensor in inputs), default=1)
        if rows == 1:
            self._lines = (0,)
            return
        before = self._lines or (0,) * rows
        differs = torch.zeros(max(rows - 1, 0), dtype=torch.bool)
        for tensor in inputs:
            if len(tensor) == rows > 1:
                differs |= (tensor[1:] != tensor[:-1]).flatten(1).any(1).cpu()
        lines = [0]
        for row in range(1, rows):
            is_new = bool(differs[row - 1]) or before[row] != before[row - 1]
            lines.append(lines[-1] + is_new)
        self._lines = tuple(lines)

    def evict(self, *, can_undo: bool = True) -> None:
        """Empty the window: memory layers remember it, the others forget it."""
        tokens = self.local
        for layer in self.windows:
            # all of them before any is changed
            layer.check(self._valid)
        self._undo = (tokens, self._valid, self._origin) if can_undo else None
        for layer in self.windows:
            layer.evict(tokens, self._valid, can_undo, self._lines)
        self._valid = None
        if self.config.positions != "true":
            self._origin = None

    def rewind(self) -> None:
        """Forget what an unfinished forward pass has left in the windows of some layers."""
        for layer in self.windows:
            layer.keep(self.local)

    def clear_window(self) -> None:
        """Forget what stands in the window, also if a forward pass was interrupted half-way."""
        self._length = self.start
        self._valid = self._origin = None
        for layer in self.windows:
            layer.clear()

    _undo: tuple[int, Tensor | None, Origin | None] | None = None

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back: not under the published rules."""
        return self.config.split != "longllama"

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, taking back the latest eviction if they reach behind it."""
        if tokens_to_remove > 0:
            raise LongFocusError(
                f"crop takes the number of tokens to remove as a negative number. Got {tokens_to_remove}. "
                f"Use crop({-tokens_to_remove})."
            )
        remove = -tokens_to_remove
        if remove == 0:
            return
        if self.config.split == "longllama":
            raise LongFocusError(
                "split='longllama' cannot take tokens back: the published rules evict a whole window as soon as the "
                "next tokens do not fit. Use FocusConfig(split='when_needed') for assisted decoding."
            )
        reach = self.local + (0 if self._undo is None else self._undo[0])
        if remove > reach:
            raise LongFocusError(
                f"Cannot remove {remove} tokens: only the window and the one evicted last can be taken back, {reach} "
                "tokens here. Remove fewer, or start a new FocusCache."
            )
        # also when just the tokens behind the eviction go: it would not have come without them
        if remove >= self.local and self._undo is not None:
            remove -= self.local
            self._length -= self.local
            tokens, self._valid, self._origin = self._undo
            for layer in self.windows:
                layer.undo_evict(tokens)
            self._undo = None
        for layer in self.windows:
            layer.crop(-remove)
        self._length -= remove
        if self._valid is not None:
            self._valid = self._valid[:, : self.local]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes row `beam_idx[b]`: windows are copied, memory is only renumbered."""
        for layer in self.windows:
            layer.select(beam_idx)
        self._undo = None
        if self._lines is not None:
            self._lines = tuple(self._lines[row] for row in beam_idx.tolist())
        if self._valid is not None:
            self._valid = self._valid[beam_idx.to(self._valid.device)]
        # an origin found without padding may be one for all rows
        if self._origin is not None and len(self._origin.position) > 1:
            self._origin = Origin(*(t[beam_idx.to(t.device)] for t in self._origin))

    def batch_select_indices(self, indices: Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self.rows or 0).repeat_interleave(repeats))

    @property
    def rows(self) -> int | None:
        """Batch rows that the cache holds; None while it is empty."""
        for layer in self.windows:
            if layer.local and layer.keys is not None:
                return layer.keys.shape[0]
            if isinstance(layer, MemoryLayer) and layer.store.parts():
                return len(layer.store.parts()[0].rows or ())
        return None

    def reset(self) -> None:
        super().reset()
        self._valid = self._origin = self._undo = self._lines = None
        self._length = 0
