"""Which model and which tokenizer a document was read with, in a few hashes.

Equal fingerprints mean that equal text gives equal keys and values, up to rounding. What lies behind the last memory
layer cannot matter and is left out, so that a model whose upper layers were trained further can use its old documents.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.hf.layers import attention_modules, model_inside
from longfocus.hf.widened import narrowed, number_type
from longfocus.memory.header import canonical

if TYPE_CHECKING:
    from longfocus.hf.attachment import Attachment

_DIGITS = 32
# What architectures call the norm between the last layer and the output.
_LAST_NORMS = ("norm", "final_layer_norm")
# Values of every weight that are looked at to find out whether it changed.
_SAMPLED = 8
# Entries of a configuration that say nothing about what a layer computes from token ids. Any other entry counts, also
# one that nobody knows.
_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "focus",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "layerdrop",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sep_token_id",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Reading is done in eval mode.
_DROPOUTS = ("dropout", "dropout_prob", "dropout_rate", "_pdrop")
# Lists with one entry for every layer. Others may have as many entries by chance, such as factors of rotary encoding.
_OF_LAYERS = ("attention_layers", "layer_types", "mlp_layer_types", "no_rope_layers")


def model_fingerprint(model: Any, *, every_layer: bool = False) -> dict[str, str]:
    """What shapes the memory of an attached model: architecture, settings, weights, number type.

    The weights up to the last memory layer (`every_layer`: all of them, which shape the windows too) are hashed once,
    and again when they have changed.
    """
    # the same whether it is asked through a wrapper of peft or not
    inside: Any = model_inside(model)
    attachment: Attachment = inside.focus
    last = None if every_layer else max(attachment.rotaries)
    behind = () if last is None else _behind(inside, last)
    weights, adapters = dict(_weights(inside, behind)), _adapters(inside, behind)
    state = (adapters, *map(_state, weights.values()))
    known = attachment.fingerprints.get(every_layer)
    if known is None or known[0] != state:
        made = _fingerprint(inside, weights, adapters, last)
        known = attachment.fingerprints[every_layer] = (state, made)
    return known[1]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """A hash of how a tokenizer cuts texts; None for none."""
    if tokenizer is None:
        return None
    state, known = _TOKENIZERS.get(tokenizer, (None, None))
    if state != len(tokenizer):
        known = _cutting(tokenizer)
        _TOKENIZERS[tokenizer] = (len(tokenizer), known)
    return known


def _cutting(tokenizer: PreTrainedTokenizerBase) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        # padding and truncation are set from call to call
        rules = {
            name: rule
            for name, rule in json.loads(fast.to_str()).items()
            if name not in ("padding", "truncation")
        }
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return _hash(canonical(rules).encode())


# A large vocabulary takes a while to hash; adding tokens changes its length.
_TOKENIZERS: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def _fingerprint(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    adapters: tuple[str, ...],
    last_layer: int | None,
) -> dict[str, str]:
    numbers = number_type(model)
    settings = _settings(model.config.to_dict(), last_layer)
    # quantized weights are buffers; those that are not saved, such as rotary frequencies, follow from the settings
    unsaved = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    saved = {name: weight for name, weight in weights.items() if name not in unsaved}
    with ThreadPoolExecutor() as pool:
        each = pool.map(lambda weight: hash_weight(narrowed(weight, numbers)), saved.values())
        hashes = dict(zip(saved, each, strict=True))
    return {
        "architecture": str(model.config.model_type),
        "settings": _hash(json.dumps(settings, sort_keys=True, default=str).encode()),
        "weights": _hash(canonical([hashes, *adapters]).encode()),
        "number_type": str(numbers).removeprefix("torch."),
    }


def _settings(config: Mapping[str, Any], last_layer: int | None) -> dict[str, Any]:
    """The entries of a configuration that can change the pairs of the layers up to the last; None: of all layers."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in _IRRELEVANT or name.startswith("_") or name.endswith(_DROPOUTS):
            continue
        # layers are counted in the configuration that is not inside another
        nested = isinstance(value, Mapping) and "model_type" in value
        found[name] = _settings(value, None) if nested else value
    if _has_plain_rotary(config):
        found.pop("max_position_embeddings", None)
    # with layers that share the keys of others, which ones they are is counted from the last
    if last_layer is not None and not config.get("num_kv_shared_layers"):
        found.pop("num_hidden_layers", None)
        for name in _OF_LAYERS:
            if isinstance(own := found.get(name), list | tuple):
                found[name] = list(own[: last_layer + 1])
    return found


def _has_plain_rotary(config: Mapping[str, Any]) -> bool:
    """Whether all rotary encoding is of the kind that is the same for any length."""
    rotary = config.get("rope_parameters")
    if not isinstance(rotary, Mapping) or not rotary:
        return False
    by_kind = all(isinstance(own, Mapping) for own in rotary.values())
    every = rotary.values() if by_kind else [rotary]
    return all(own.get("rope_type") == "default" for own in every)


def _behind(model: PreTrainedModel, last_layer: int) -> tuple[str, ...]:
    """How the names of modules begin that work behind a layer: those of later layers, and the norm behind all."""
    modules = {id(module): name for name, module in model.named_modules()}
    # the layers that hold the attention modules
    layers = {
        number: modules[id(attention)].rpartition(".")[0]
        for number, attention in attention_modules(model).items()
    }
    trunk = layers[last_layer].rpartition(".")[0].rpartition(".")[0]
    later = [name for number, name in layers.items() if number > last_layer]
    return tuple(f"{name}." for name in (*(f"{trunk}.{norm}" for norm in _LAST_NORMS), *later))


def _weights(model: PreTrainedModel, behind: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """All weights and buffers but those behind the memory and of the output."""
    output = model.get_output_embeddings()
    outputs = {id(weight) for weight in output.parameters()} if output is not None else set()
    outputs -= {id(weight) for weight in model.get_input_embeddings().parameters()}
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        if not name.startswith(behind) and id(weight) not in outputs:
            yield name, weight


def _adapters(model: PreTrainedModel, behind: tuple[str, ...]) -> tuple[str, ...]:
    """Which adapters of peft are at work where, and how strongly: several may lie beside the same weights."""
    found = []
    for name, module in model.named_modules():
        # peft may not be installed; other modules have no such list
        active = getattr(module, "active_adapters", None)
        if isinstance(active, list) and not module.disable_adapters and not name.startswith(behind):
            # kinds of adapters without a scale have no such table
            found.append(f"{name} {active} {getattr(module, 'scaling', None)}")
    return tuple(found)


def _state(weight: Tensor) -> tuple[object, ...]:
    """Changes when the weight does; some values, because what is written through `.data` counts as no new version."""
    if weight.is_meta:
        return ()
    flat = weight.detach().flatten()
    values = flat[:: max(1, len(flat) // _SAMPLED)].tolist()
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version, *values


def hash_weight(weight: Tensor) -> str:
    """Of number type, shape and content. Raises LongFocusError for a weight that is not in memory."""
    kind = f"{weight.dtype} {tuple(weight.shape)} "
    if weight.is_meta:
        raise LongFocusError(
            "Weights of this model are offloaded to the disk or the CPU by accelerate, so that it cannot be told from "
            "others, and documents cannot be used with it. Load it into memory as a whole."
        )
    found = sha256(kind.encode())
    for rows in weight.detach().flatten().split(2**24):
        found.update(rows.contiguous().view(torch.uint8).cpu().numpy().data)
    return found.hexdigest()[:_DIGITS]


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()[:_DIGITS]
