"""What `generate` offers and memory cannot do: refused with a message, never silently wrong."""

from typing import TYPE_CHECKING, Any

from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from longfocus.hf.model import FocusMixin


BASES = ("sdpa", "eager")
"""Attention implementations that memory layers can stand on: others hand over masks that cannot be merged."""


def check_base(implementation: Any) -> None:
    """Raise LongFocusError unless memory layers can stand on this attention implementation."""
    if implementation not in BASES:
        raise LongFocusError(
            f"A model with memory cannot use the attention implementation {implementation!r}: it hands no mask that "
            f"window and memory could share. Allowed: {', '.join(map(repr, BASES))}. Call "
            "model.set_attn_implementation('sdpa')."
        )


def refuse_generation(model: "FocusMixin", config: Any, kwargs: dict[str, Any]) -> bool:
    """Raise LongFocusError if `generate(**kwargs)` asks for what windows and memory cannot give.

    Returns whether decoding is assisted.
    """

    def asked(name: str) -> Any:
        # in this order: transformers fills gaps of a given config from the model's own
        given = (
            kwargs.get(name),
            getattr(config, name, None),
            getattr(model.generation_config, name, None),
        )
        return (
            kwargs[name]
            if name in kwargs
            else next((value for value in given if value is not None), None)
        )

    if asked("prefill_chunk_size"):
        raise LongFocusError(
            "prefill_chunk_size would cut the prompt in other places than the memory's windows. It is not needed: a "
            "model with memory reads a long prompt window by window. Leave it out."
        )
    if asked("cache_implementation") not in (None, "dynamic"):
        raise LongFocusError(
            f"cache_implementation={asked('cache_implementation')!r} has no windows to evict. A model with memory uses "
            "its own FocusCache. Leave it out."
        )
    if asked("use_cache") is False:
        raise LongFocusError(
            "use_cache=False would read the whole text again for every token, cut in other places, and without "
            "documents. Leave it out, or set model.generation_config.use_cache = True."
        )
    if asked("assistant_early_exit"):
        raise LongFocusError(
            "assistant_early_exit runs the model with fewer layers than its memory has. Use an assistant_model or "
            "prompt_lookup_num_tokens."
        )
    assisted = [name for name in ("assistant_model", "prompt_lookup_num_tokens") if asked(name)]
    past = kwargs.get("past_key_values")
    split = getattr(past, "config", model.focus.config).split
    if assisted and split == "longllama":
        raise LongFocusError(
            f"Assisted decoding ({assisted[0]}) changes the moment at which the published rules evict, and with it the "
            "text. Use FocusConfig(split='when_needed'), where it equals greedy decoding, or leave it out."
        )
    if assisted and past is not None and past.get_seq_length():
        raise LongFocusError(
            f"Assisted decoding ({assisted[0]}) from a cache that already holds a conversation "
            "feeds part of the prompt twice in transformers, and would not equal greedy decoding. "
            "Start from the whole prompt, or leave it out."
        )
    guesses = asked("prompt_lookup_num_tokens") or 0
    window = getattr(past, "config", model.focus.config).window
    if guesses >= window:
        raise LongFocusError(
            f"prompt_lookup_num_tokens={guesses} guesses do not fit the window of {window} tokens, so they could "
            f"not be taken back. Use fewer than {window}."
        )
    return bool(assisted)


def refuse_paged() -> LongFocusError:
    """The error for every way into continuous (paged) batching."""
    return LongFocusError(
        "Continuous (paged) batching keeps keys in pages of its own and cannot serve a model with memory. "
        "Use generate with a padded batch, or longfocus.detach(model)."
    )
