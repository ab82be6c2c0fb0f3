"""The forward pass of an attached model: windows in, memory in between, logits out.

    cut the tokens (core.windows)
    per piece   evict the window if it must leave  ->  local positions  ->  the stock model's own forward
    join the logits that were asked for

`FocusMixin` goes in front of the stock class (`attach` swaps the class of the model); `generate` stays the library's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache as memoize
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.core.additional import AdditionalContexts
from longfocus.core.windows import Piece, cut
from longfocus.errors import LongFocusError
from longfocus.hf import checks, inputs
from longfocus.hf.attachment import Attachment
from longfocus.hf.cache import FocusCache
from longfocus.hf.call import Call, PassDone
from longfocus.hf.gates import add_gates
from longfocus.hf.quiet import without_length_reminder
from longfocus.hf.refusals import check_base, refuse_generation, refuse_paged
from longfocus.hf.trace import Trace


class FocusMixin(PreTrainedModel):
    """Put in front of a stock causal LM class by `focus_class`."""

    focus: Attachment

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # a checkpoint with a gate holds its parameters, so they must be there before it is loaded
        if (saved := getattr(config, "focus", None)) and FocusConfig.from_dict(
            saved
        ).merge == "gate":
            add_gates(self, FocusConfig.from_dict(saved).memory_layers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        last_context_length: int | None = None,
        additional_contexts: Tensor | AdditionalContexts | None = None,
        focus_trace: Trace | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock model's forward, with memory. New arguments:

        `last_context_length`: tokens of a long prompt that stay in the window, for this call. `additional_contexts`:
        a crossbatch plan `[rows, contexts]`; memory layers of row b also see the windows of the rows it lists.
        An `AdditionalContexts` also says what is padding, and lists rows of other processes.
        `focus_trace` collects where memory layers looked; with one that `ends_pass` nothing else may come back (None).
        `attention_mask` covers everything seen and the new tokens.
        """
        tokens = checks.check_tokens(self, input_ids, inputs_embeds)
        shared = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **kwargs}
        rows = next(given.shape[0] for given in (input_ids, inputs_embeds) if given is not None)
        checks.check_shapes(rows, tokens, position_ids, labels, logits_to_keep, last_context_length)
        use_cache = getattr(self.config, "use_cache", True) if use_cache is None else use_cache
        if additional_contexts is not None and past_key_values is not None:
            raise LongFocusError(
                "additional_contexts (crossbatch) and a cache exclude each other: crossbatch is training within one "
                "window. Leave out past_key_values."
            )
        if past_key_values is None and self._is_one_window(tokens, use_cache, additional_contexts):
            checks.check_own_mask(attention_mask, rows, tokens)
            call = Call(self.focus.config, passed=frozenset(kwargs))
            if additional_contexts is not None:
                contexts = checks.check_contexts(additional_contexts, attention_mask, rows, tokens)
                checks.check_crossbatch(tokens, contexts, call.config)
                call = replace(call, contexts=contexts)
            given = {
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "labels": labels,
            }
            return self._one_pass(call, **shared, **given, logits_to_keep=logits_to_keep)
        self._refuse_checkpointing()
        memory = inputs.cache_for(self, past_key_values, rows)
        checks.check_stay(memory, memory.config, use_cache)
        windows = inputs.Windows(
            memory, rows, tokens, attention_mask, position_ids, logits_to_keep, focus_trace
        )
        pieces = cut(
            tokens,
            local=memory.local,
            window=memory.config.window,
            kept=last_context_length or memory.config.kept,
            split=memory.config.split,
            prompt=windows.prompt,
            stay=use_cache,
        )
        return self._many_passes(windows, pieces, shared, labels, use_cache)

    def _is_one_window(self, tokens: int, use_cache: bool, contexts: Any) -> bool:
        """Whether one window without a cache will do: no memory is looked into and none is left behind."""
        config: FocusConfig = self.focus.config
        fits = tokens <= (config.window if config.split == "when_needed" else config.kept)
        return contexts is not None or (fits and (self.training or not use_cache))

    def _refuse_checkpointing(self) -> None:
        if self.training and self.is_activation_checkpointing:
            raise LongFocusError(
                "Gradient checkpointing recomputes layers without their cache, so windows and memory would be lost "
                "silently. Turn it off, or train on single windows with crossbatch "
                "(additional_contexts), which supports it."
            )

    def _one_pass(self, call: Call, **kwargs: Any) -> Any:
        """The stock forward on one window, with `call` for its memory layers."""
        if call.cache is None and not self.focus.passes_kwargs:
            # this architecture drops unknown kwargs on the way down; a cache reaches every layer
            scratch = FocusCache(self, config=call.config)
            with _calling(scratch, replace(call, cache=scratch)):
                output = super().forward(**kwargs, past_key_values=scratch, use_cache=False)
            output.past_key_values = None
            return output
        if call.cache is None:
            return super().forward(**kwargs, use_cache=False, focus_call=call)
        extra = {"focus_call": call} if self.focus.passes_kwargs else {}
        with _calling(call.cache, call):
            try:
                return super().forward(
                    **kwargs, **extra, past_key_values=call.cache, use_cache=True
                )
            except PassDone:
                return None
            except BaseException:
                call.cache.rewind()
                raise

    @torch.no_grad()
    def read_window(self, memory: FocusCache, input_ids: Tensor) -> None:
        """Run one window `[rows, tokens]` that is only read, up to the keys and values of the last memory layer.

        They stand in the window of `memory`, which must be empty before; the caller evicts or takes them. Exact:
        nothing behind the last memory layer can reach a later window.
        """
        assert memory.local == 0, "a window that is only read must begin empty"
        positions = torch.arange(
            memory.start, memory.start + input_ids.shape[1], device=input_ids.device
        )[None]
        call = Call(memory.config, cache=memory, stops_after=self.focus.last_layer)
        self._one_pass(
            call, input_ids=input_ids, position_ids=memory.place(positions, None), logits_to_keep=1
        )

    def _many_passes(
        self,
        windows: inputs.Windows,
        pieces: list[Piece],
        shared: dict[str, Any],
        labels: Tensor | None,
        use_cache: bool,
    ) -> Any:
        """Piece by piece through the stock forward, and the results joined."""
        memory = windows.memory
        memory.tell_rows_apart(windows.per_row(shared))
        return_dict = shared.pop("return_dict", None)
        checks.check_attentions(self, memory, pieces, shared)
        checks.check_router_loss(self, pieces, shared, labels)
        wants_states = shared.get("output_hidden_states") or getattr(
            self.config, "output_hidden_states", False
        )
        outputs: list[tuple[Any, int]] = []
        for piece in pieces:
            if piece.evict_before:
                memory.evict()
            wanted = windows.wanted(piece)
            traced = windows.traced(piece)
            is_only_read = piece.evict_after and not (wanted or wants_states or traced)
            call = Call(
                memory.config,
                cache=memory,
                stops_after=self.focus.last_layer if is_only_read else None,
                trace=windows.trace,
                traced=traced,
                looks_last=self.focus.last_layer if traced and windows.only_looks else None,
                passed=frozenset(shared),
            )
            arguments = windows.arguments(piece, shared)
            if labels is not None and len(pieces) == 1:
                arguments["labels"] = labels
            try:
                output = self._one_pass(call, **arguments, logits_to_keep=max(wanted, 1))
            except BaseException as error:
                error.add_note(
                    f"The cache has taken the first {piece.start} of these {windows.tokens} tokens."
                )
                raise
            if output is not None and (wanted or wants_states):
                outputs.append((output, wanted))
            windows.extend(piece)
            if piece.evict_after:
                memory.evict(can_undo=not is_only_read)
        if not outputs:
            return None
        joined = inputs.join(outputs)
        joined.past_key_values = memory if use_cache else None
        if labels is not None and len(pieces) > 1:
            extra = {
                name: shared[name] for name in shared if name not in ("input_ids", "inputs_embeds")
            }
            joined.loss = self.loss_function(
                logits=joined.logits, labels=labels, vocab_size=self.config.vocab_size, **extra
            )
        if isinstance(windows.logits_to_keep, Tensor):
            joined.logits = joined.logits[:, windows.logits_to_keep]
        return joined if return_dict is not False else joined.to_tuple()

    @without_length_reminder()
    def generate(
        self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The library's own `generate`, after refusing what cannot work with windows and memory."""
        is_assisted = refuse_generation(self, generation_config, kwargs)
        stock: Any = super()
        if not is_assisted:
            return stock.generate(inputs, generation_config, *args, **kwargs)
        # guesses are no prompt: the cache tells the forward pass, and never reaches the assistant
        cache = kwargs.pop("past_key_values", None) or FocusCache(self)
        cache.is_assisted = True
        try:
            return stock.generate(inputs, generation_config, *args, past_key_values=cache, **kwargs)
        finally:
            cache.is_assisted = False

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: paged attention has no windows."""
        raise refuse_paged()

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Change the base attention; memory layers keep their memory."""
        check_base(attn_implementation)
        self.focus.restore_attention(self)
        try:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
        finally:
            self.focus.take_attention(self)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # the class is made on demand and cannot be found by name
        return _rebuild, (stock_class(type(self)),), self.__dict__


@contextmanager
def _calling(cache: FocusCache, call: Call) -> Iterator[None]:
    """The cache carries the call in progress, for layers that are passed nothing else."""
    before, cache.call = cache.call, call
    try:
        yield
    finally:
        cache.call = before


@memoize
def focus_class(base: type[PreTrainedModel]) -> type[FocusMixin]:
    """`base` with memory. It keeps the stock name, which is what save_pretrained writes."""
    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (FocusMixin, base), body)


def stock_class(focused: type) -> type[PreTrainedModel]:
    """The class that `focus_class` was given."""
    return focused.__mro__[2]


def _rebuild(base: type[PreTrainedModel]) -> FocusMixin:
    made = focus_class(base)
    return made.__new__(made)
