"""`attach` gives a stock model its memory, `detach` takes it away without a trace."""

import logging
from functools import cache as memoize
from inspect import signature

from torch import nn
from transformers import PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.attachment import Attachment
from longfocus.hf.attention import FocusHook
from longfocus.hf.gates import add_gates, remove_gates
from longfocus.hf.layers import attention_modules, longest_window
from longfocus.hf.model import FocusMixin, focus_class, stock_class
from longfocus.hf.refusals import check_base
from longfocus.hf.rotary import rotary_of
from longfocus.hf.verify import passes_kwargs, verify_attached, verify_reference

logger = logging.getLogger(__name__)


def attach(model: PreTrainedModel, config: FocusConfig, *, verify: bool = True) -> FocusMixin:
    """Give `model` (changed in place, and returned) the memory that `config` describes.

    With `verify`, a few tokens prove that the architecture is handled exactly: a short input gives the plain
    model's logits bit for bit, and two windows leave tokens in every memory layer. The random state and the model's
    mode are restored. Raises LongFocusError with the reason if the model cannot carry this memory, and leaves the
    model as it was.
    """
    layers = _check(model, config)
    attachment = Attachment(
        config,
        {i: rotary_of(model, layers[i]) for i in config.memory_layers},
        len(layers),
    )
    is_new = getattr(model.config, "focus", None) is None
    reference = (
        verify_reference(model, config, [layers[i] for i in config.memory_layers])
        if verify
        else None
    )
    _put_in_place(model, attachment, layers)
    try:
        if config.memory_layers:
            attachment.passes_kwargs = passes_kwargs(model, layers[config.memory_layers[0]])
        if reference is not None:
            verify_attached(model, reference)
    except LongFocusError:
        detach(model)
        raise
    except Exception as error:
        detach(model)
        raise LongFocusError(
            f"{type(model).__name__} cannot carry this memory: its forward pass does something that LongFocus does not "
            f"know ({type(error).__name__}: {error}). Try other memory layers, and please report the architecture."
        ) from error
    if is_new and config.memory_layers:
        _say_untrained()
    assert isinstance(model, FocusMixin)
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory away: exactly the model that it was. Returns the same object."""
    attachment = getattr(model, "focus", None)
    if not isinstance(attachment, Attachment):
        raise LongFocusError(
            f"This {type(model).__name__} has no memory attached, so there is nothing to detach. See longfocus.attach."
        )
    attachment.restore_attention(model)
    for module in attention_modules(model).values():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, FocusHook)]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    remove_gates(model)
    model.__class__ = stock_class(type(model))
    del model.__dict__["focus"]
    model.config.__dict__.pop("focus", None)
    return model


def _put_in_place(
    model: PreTrainedModel, attachment: Attachment, layers: dict[int, nn.Module]
) -> None:
    config = attachment.config
    model.__dict__["focus"] = attachment
    model.config.focus = config.to_dict()
    if not isinstance(model, FocusMixin):
        model.__class__ = focus_class(type(model))
    if config.merge == "gate":
        add_gates(model, config.memory_layers)
    for layer, rotary in attachment.rotaries.items():
        layers[layer].register_forward_pre_hook(FocusHook(layer, rotary), with_kwargs=True)
    attachment.take_attention(model)


def _check(model: PreTrainedModel, config: FocusConfig) -> dict[int, nn.Module]:
    """The attention modules by layer; raises LongFocusError if `model` cannot carry `config`."""
    name = type(model).__name__
    if not isinstance(config, FocusConfig):
        raise LongFocusError(
            f"attach needs a longfocus.FocusConfig. Got {type(config).__name__}. "
            "See FocusConfig(memory_layers=..., window=...)."
        )
    if isinstance(getattr(model, "focus", None), Attachment):
        raise LongFocusError(
            f"This {name} has a memory already. Call longfocus.detach(model) first."
        )
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise LongFocusError(
            f"attach needs a Hugging Face causal language model. Got {name}. See AutoModelForCausalLM."
        )
    if "forward" in model.__dict__ and not isinstance(model, FocusMixin):
        raise LongFocusError(
            f"This {name} is wrapped by accelerate (device_map or a trainer), which would bypass the memory. "
            "Attach before wrapping, or load with longfocus.from_pretrained(path, device_map=...)."
        )
    if model.config.get_text_config() is not model.config:
        raise LongFocusError(
            f"{name} reads more than text, and only its language model can carry a memory. Load that alone, as its "
            "...ForCausalLM class, and attach to it."
        )
    layers = attention_modules(model)
    modern = layers and all(
        "position_embeddings" in signature(m.forward).parameters for m in layers.values()
    )
    if not modern or not model._can_set_attn_implementation():
        raise LongFocusError(
            f"{name} cannot carry a memory: its attention does not go through transformers' AttentionInterface with "
            "rotary position_embeddings. Learned positions (GPT-2, OPT), ALiBi (Bloom), rotary inside the attention "
            "(GPT-J, Falcon) and complex rotary factors (Llama 4) are not supported; see docs/models.md."
        )
    check_base(model.config._attn_implementation)
    count = len(layers)
    if wrong := [i for i in config.memory_layers if not 0 <= i < count]:
        raise LongFocusError(
            f"memory_layers={config.memory_layers} but this model has {count} layers (0..{count - 1}): {wrong} do not "
            f"exist. Pick layers below {count}, e.g. ({count // 2},)."
        )
    longest = longest_window(model.config)
    if longest is not None and config.window > longest:
        raise LongFocusError(
            f"window={config.window} is longer than the model's positions, {longest}. "
            f"Pick a window of at most {longest}."
        )
    return layers


@memoize
def _say_untrained() -> None:
    logger.warning(
        "LongFocus: this model was never trained to use a memory, so its answers may get worse with a long one. "
        "See docs/training.md; longfocus.from_pretrained loads models that were."
    )
