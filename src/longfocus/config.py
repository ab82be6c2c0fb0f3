"""`FocusConfig`: every choice that turns a stock model into one with memory.

It is saved in the model's `config.json` under `focus` and is enough to attach the same memory
again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from operator import index as whole_number
from typing import Any, Literal, Self, get_args

from longfocus.errors import LongFocusError

Positions = Literal["window_start", "none", "true"]
Search = Literal["dense", "exact", "clustered", "faiss"]
Merge = Literal["joint", "gate"]
Split = Literal["when_needed", "longllama"]

MEMORY_DTYPES = ("float32", "bfloat16", "float16", "float64", "int8")


@dataclass(frozen=True, kw_only=True)
class FocusConfig:
    """How a model looks into its memory (paper section 3.1)."""

    memory_layers: tuple[int, ...]
    """Layers (counted from 0) that also attend to the memory; the others see the window only."""

    window: int
    """Tokens that all layers process together, the local context (LongLLaMA: 2048)."""

    last_context_length: int | None = None
    """Tokens of a long prompt that stay in the window; the rest goes to the memory.
    None: half a window."""

    positions: Positions = "window_start"
    """Rotary encoding in memory layers: memory keys as if at the window's first token (LongLLaMA),
    none at all (the paper's small models), or their true place in one stream (experiments)."""

    search: Search = "dense"
    """`dense` attends to all of the memory, `exact` to the top-k keys of every query and head,
    `clustered` to all keys of the clusters that matter (docs/speed.md), `faiss` to the top-k keys
    that a FAISS index finds."""

    top_k: int = 128
    """Memory keys per query and query head for top-k search; no effect on `dense`."""

    retain: float = 0.99
    """Share of the attention on the memory that an approximate search keeps: it measures itself on
    some queries, and looks at more where the mean falls below; no effect on `dense`, `exact`, nor
    on `faiss` with the index "Flat", whose top-k keys are the answer."""

    index: str = "Flat"
    """FAISS index factory string for `faiss`: "Flat" is exact, "HNSW32", "IVF1024,Flat" and others
    look at few keys; no effect on other searches."""

    certify: bool = False
    """Give every query of `clustered` a proven upper bound on the share of attention that it missed,
    and look at more where that is over 1 - retain: one more scan over the memory, in int8."""

    memory_dtype: str | None = None
    """Type in which the memory is kept, such as "bfloat16", or "int8" with a scale for each key and
    value; None: that of the model's keys."""

    merge: Merge = "joint"
    """`joint`: one softmax over window and memory.
    `gate`: the Memorizing Transformer's learned gate."""

    split: Split = "when_needed"
    """When a prompt is cut and a window evicted: only when it must be, or by published rules."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory_layers", _layer_numbers(self.memory_layers))
        self._check_choice("positions", Positions)
        self._check_choice("search", Search)
        self._check_choice("merge", Merge)
        self._check_choice("split", Split)
        for name, least in (("window", 2), ("top_k", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise LongFocusError(
                    f"{name} must be a whole number of at least {least}. Got {value!r}."
                )
        if not isinstance(self.retain, float | int) or not 0 < self.retain < 1:
            raise LongFocusError(
                f"retain is a share of attention between 0 and 1, such as 0.99. Got {self.retain!r}. "
                "To leave nothing out use search='dense'."
            )
        if not isinstance(self.index, str) or not self.index:
            raise LongFocusError(
                f"index is a FAISS factory string, such as 'Flat' or 'HNSW32'. Got {self.index!r}."
            )
        if not isinstance(self.certify, bool):
            raise LongFocusError(f"certify is True or False. Got {self.certify!r}.")
        kept = self.last_context_length
        if kept is not None and (not isinstance(kept, int) or kept < 1):
            raise LongFocusError(
                f"last_context_length must be at least 1 token, the one that is answered. "
                f"Got {kept}. Leave it out for half a window."
            )
        if self.memory_dtype is not None and self.memory_dtype not in MEMORY_DTYPES:
            raise LongFocusError(
                f"memory_dtype={self.memory_dtype!r} is not a type for keys and values. "
                f"Allowed: {MEMORY_DTYPES} or None."
            )

    def _check_choice(self, name: str, allowed: object) -> None:
        value = getattr(self, name)
        if value not in get_args(allowed):
            choices = ", ".join(map(repr, get_args(allowed)))
            raise LongFocusError(f"{name}={value!r} is not known. Allowed: {choices}.")

    @property
    def kept(self) -> int:
        """Tokens of a long prompt that stay in the window: `last_context_length`, or half of it."""
        return self.last_context_length or self.window // 2

    def changed(self, **changes: Any) -> Self:
        """The same choices but for these; None changes nothing."""
        given = {name: value for name, value in changes.items() if value is not None}
        return self.from_dict({**self.to_dict(), **given})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory_layers": list(self.memory_layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise LongFocusError(
                f"This FocusConfig was written by a newer LongFocus: unknown entries {unknown}. "
                "Install a newer version, or remove them from config.json."
            )
        entries: dict[str, Any] = dict(values)
        return cls(**entries)


def _layer_numbers(given: Any) -> tuple[int, ...]:
    """Layer numbers from any iterable of whole numbers, ascending."""
    try:
        layers = [] if isinstance(given, str) else list(given)
        numbers = {whole_number(layer) for layer in layers if not isinstance(layer, bool)}
    except TypeError:
        layers, numbers = [given], set()
    if isinstance(given, str) or len(numbers) != len(layers):
        raise LongFocusError(
            "memory_layers must be layer numbers, counted from 0, none twice, such as (8, 16, 24). "
            f"Got {given!r}. Pick layers of the model."
        )
    return tuple(sorted(numbers))
