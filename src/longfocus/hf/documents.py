"""Whether a model can use a document: only the model that read it, or one with the same lower layers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.fingerprint import model_fingerprint
from longfocus.hf.layers import attention_modules, kv_heads_and_dim
from longfocus.memory.base import Part
from longfocus.memory.document import DocumentMemory

_DIFFERENCES = {
    "architecture": "a model of another architecture, {theirs}, not {ours}",
    "number_type": "the model in {theirs}; here it is loaded in {ours}",
    "settings": "a model of the same architecture with other settings (config.json)",
    "weights": "a model of the same architecture with other weights, such as before more training",
}
_AGAIN = "Load the model that read it, or read the text again with this one."


def documents_of(given: Iterable[DocumentMemory]) -> list[DocumentMemory]:
    """What callers give as documents. Raises LongFocusError for what is no document memory."""
    # a document alone is no list
    documents: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(document, DocumentMemory) for document in documents):
        raise LongFocusError(
            f"documents= takes a list of document memories, or a library. Got {str(given)[:100]!r}. Open a file with "
            "DocumentMemory.load(path), and read a text with Session.read."
        )
    return documents


def check_documents(model: Any, config: FocusConfig, documents: Sequence[DocumentMemory]) -> None:
    """Raise LongFocusError unless an attached model, under `config`, can use the documents."""
    # once for all: it looks at every weight
    ours = model_fingerprint(model) if any(d.description.read_with.model for d in documents) else {}
    shape = kv_heads_and_dim(model.config)
    for document in documents:
        _check(document, config, ours, shape)


def _check(
    document: DocumentMemory, config: FocusConfig, ours: dict[str, str], shape: tuple[int, int]
) -> None:
    read_with, place = document.description.read_with, document.path or repr(document.name)
    layers = list(document.description.memory_layers)
    if config.positions == "true":
        raise LongFocusError(
            f"Document {place} was read in isolation and has no place in one stream, which positions='true' needs. "
            "Use positions='window_start' or 'none' for documents."
        )
    if layers != list(config.memory_layers) or read_with.positions != config.positions:
        raise LongFocusError(
            f"Document {place} was read with memory layers {layers} and positions {read_with.positions!r}; this model "
            f"has {list(config.memory_layers)} and {config.positions!r}. {_AGAIN}"
        )
    if read_with.model:
        for name, words in _DIFFERENCES.items():
            if (theirs := read_with.model.get(name)) != ours[name]:
                told = words.format(theirs=theirs, ours=ours[name])
                raise LongFocusError(f"Document {place} was read by {told}. {_AGAIN}")
    theirs = (document.description.kv_heads, document.description.head_dim)
    if theirs != shape:
        raise LongFocusError(
            f"Document {place} was read by another model: it has {theirs[0]} KV heads of size {theirs[1]}, this one "
            f"{shape[0]} of {shape[1]}. {_AGAIN}"
        )


def check_tokenizer(document: DocumentMemory, tokenizer: str | None) -> None:
    """Raise LongFocusError unless texts were cut into tokens in the same way; `tokenizer` is a fingerprint."""
    theirs = document.description.read_with.tokenizer
    if theirs is not None and tokenizer is not None and theirs != tokenizer:
        raise LongFocusError(
            f"Document {document.path or repr(document.name)} was read with another tokenizer. Its token ids mean "
            "something else here. Use the tokenizer that belongs to the model, or read the text again."
        )


def parts_of(model: Any, documents: Sequence[DocumentMemory]) -> list[dict[int, Part]]:
    """The pairs of every memory layer of every document, on the device of that layer."""
    modules = attention_modules(model) if documents else {}
    devices = {layer: _device(module, model.device) for layer, module in modules.items()}
    return [
        {layer: document.part(layer, devices[layer]) for layer in document.layers}
        for document in documents
    ]


def _device(module: torch.nn.Module, default: torch.device) -> torch.device:
    weight = next(module.parameters(), None)
    return default if weight is None or weight.is_meta else weight.device
