"""What `attach` leaves on a model as `model.focus`, and `detach` takes away."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.hf.attention import PREFIX, register
from longfocus.hf.layers import attention_modules
from longfocus.hf.rotary import Rotary


@dataclass
class Attachment:
    """The memory of one model: its settings, and what is needed to undo them."""

    config: FocusConfig
    rotaries: dict[int, Rotary]
    """How each memory layer rotates."""
    num_layers: int
    passes_kwargs: bool = True
    """Whether the architecture hands unknown keyword arguments down to its attention; `attach` finds out."""
    base_attention: list[str] = field(default_factory=list)
    """The attention implementation of every config of the model, before it was replaced."""

    fingerprints: dict[bool, tuple[object, dict[str, str]]] = field(default_factory=dict)
    """The model's fingerprints (fingerprint.py), and the state of its weights at that time."""

    @property
    def last_layer(self) -> int:
        """The last memory layer: a window that is only read may stop there."""
        return max(self.rotaries, default=-1)

    def take_attention(self, model: PreTrainedModel) -> None:
        """Put `focus_<base>` in place of every base attention."""
        configs = _attention_configs(model)
        self.base_attention = [config._attn_implementation for config in configs]
        for config, base in zip(configs, self.base_attention, strict=True):
            config._attn_implementation_internal = register(base)

    def restore_attention(self, model: PreTrainedModel) -> None:
        for config in _attention_configs(model):
            config._attn_implementation_internal = config._attn_implementation.removeprefix(PREFIX)


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """Every distinct config object that modules of the model read their attention implementation from."""
    found: dict[int, Any] = {id(model.config): model.config}
    for module in attention_modules(model).values():
        found.setdefault(id(module.config), module.config)
    return list(found.values())
