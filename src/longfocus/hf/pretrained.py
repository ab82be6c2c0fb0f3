"""Load models that carry a memory: saved by LongFocus, published as LongLLaMA, or shipped with the package."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf import longllama
from longfocus.hf.attach import attach
from longfocus.hf.model import FocusMixin, focus_class, stock_class
from longfocus.hf.widened import narrow_type, remembering_in

_SHIPPED = Path(__file__).parents[1] / "models"


def from_pretrained(path: str | Path, *, verify: bool = True, **kwargs: Any) -> FocusMixin:
    """Load a model with its memory attached, in eval mode.

    `path` is a folder or hub id of a model saved with memory attached (`save_pretrained`) or of a published LongLLaMA
    checkpoint, or the name of a shipped model: "dictionary", "code", "language". `kwargs` go to the library's
    `from_pretrained` (dtype, device_map, config, ...). A checkpoint of 16-bit numbers is loaded in float32 if it is to
    work on a CPU that has no instructions for them, unless `dtype` says otherwise; its memory stays in 16 bits. Raises
    LongFocusError if the checkpoint has no memory.
    """
    place = resolve(path)
    config = kwargs.pop("config", None) or _config(place, kwargs)
    focus = FocusConfig.from_dict(config.focus)
    stock = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if stock is None:
        raise LongFocusError(
            f"{place} holds a {config.model_type} model, which is not a causal language model."
        )
    narrow = _narrow_type(config, kwargs)
    if narrow is not None:
        kwargs["dtype"] = torch.float32
    model: PreTrainedModel = focus_class(stock).from_pretrained(place, config=config, **kwargs)
    # accelerate spread it over devices; its hooks hold the class, so the plain model cannot be asked
    is_spread = "forward" in model.__dict__
    if not is_spread:
        model.__class__ = stock_class(type(model))
    return attach(model, remembering_in(focus, narrow), verify=verify and not is_spread)


def _narrow_type(config: PreTrainedConfig, kwargs: dict[str, Any]) -> torch.dtype | None:
    """What `widened.narrow_type` says, unless the caller chose the numbers."""
    if any(kwargs.get(name) not in (None, "auto") for name in ("dtype", "torch_dtype")):
        return None
    devices = kwargs.get("device_map")
    if devices in (None, "auto"):
        devices = "cuda" if torch.cuda.is_available() else "cpu"
    return narrow_type(config, "cpu") if devices in ("cpu", {"": "cpu"}) else None


def tokenizer(path: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model: a folder, a hub id, or the name of a shipped model ("code")."""
    place = resolve(path)
    folder = Path(place)
    if folder.is_dir() and not any(folder.glob("tokenizer*")):
        raise LongFocusError(
            f"{path} has no tokenizer: its model reads token ids. Give the ids to Session.read and generate directly."
        )
    found = AutoTokenizer.from_pretrained(place, **kwargs)
    assert isinstance(found, PreTrainedTokenizerBase)
    return found


def shipped_models() -> list[str]:
    """Names that `from_pretrained` knows."""
    return sorted(place.parent.name for place in _SHIPPED.glob("*/config.json"))


def resolve(path: str | Path) -> str:
    """The folder of a shipped model of that name; anything else unchanged."""
    shipped = _SHIPPED / str(path)
    # a model of the user's own comes first
    if not (Path(path) / "config.json").is_file() and (shipped / "config.json").is_file():
        return str(shipped)
    return str(path)


def _config(place: str, kwargs: dict[str, Any]) -> PreTrainedConfig:
    hub = {
        name: kwargs[name]
        for name in ("revision", "cache_dir", "token", "local_files_only")
        if name in kwargs
    }
    config = read_config(place, **hub)
    if not getattr(config, "focus", None):
        raise LongFocusError(
            f"{place} is a {config.model_type} checkpoint without memory. Load it with transformers, then "
            "longfocus.attach(model, longfocus.FocusConfig(memory_layers=..., window=...))."
        )
    return config


def read_config(path: str | Path, **hub: Any) -> PreTrainedConfig:
    """The configuration of a model, a published LongLLaMA's as Llama's; `focus` is its memory if it has one."""
    place = resolve(path)
    try:
        written, _ = PreTrainedConfig.get_config_dict(place, **hub)
    except OSError as error:
        raise LongFocusError(
            f"No model found at {place!r}: {error}\nGive a folder with config.json, a hub id, or one of the shipped "
            f"models: {', '.join(shipped_models())}."
        ) from error
    if written.get("model_type") == longllama.MODEL_TYPE:
        llama, focus = longllama.to_llama(written)
        config = AutoConfig.for_model(**llama)
        config.focus = focus.to_dict()
        return config
    try:
        return AutoConfig.from_pretrained(place, **hub)
    except ValueError as error:
        raise LongFocusError(
            f"The model at {place!r} is of a kind that transformers does not know: {error}"
        ) from error
