"""How a document memory lies in its file: which tensors there are, and how they are opened without being read."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.description import Description
from longfocus.memory.header import DTYPES
from longfocus.memory.quantized import LARGEST, Scales
from longfocus.memory.tensor_file import TensorFile

_CHECKED_ELEMENTS = 2**22
_TOLD_CHARACTERS = 300
_PAIRS = ("key", "value")


class Content(NamedTuple):
    """The text behind the pairs."""

    token_ids: Int[Tensor, " tokens"]
    text: UInt8[Tensor, " bytes"] | None
    """UTF-8; None if it was read from token ids without a tokenizer that can decode them."""
    offsets: Int[Tensor, "tokens 2"] | None
    """First and past-the-end character of every token."""


class Opened(NamedTuple):
    """What a file holds, mapped."""

    description: Description
    layers: dict[int, Part]
    content: Content
    file: TensorFile


def tensors_of(content: Content, layers: Mapping[int, Part]) -> dict[str, Tensor]:
    """Every tensor of a file, by its name in it."""
    found = {name: tensor for name, tensor in content._asdict().items() if tensor is not None}
    for layer, part in layers.items():
        found |= {_name(layer, "key"): part.key[0], _name(layer, "value"): part.value[0]}
        if part.scales is not None:
            found[_name(layer, "key_scale")] = part.scales.key[0]
            found[_name(layer, "value_scale")] = part.scales.value[0]
    return found


def open_document(path: Path) -> Opened:
    """Map a file. Raises LongFocusError for one that is damaged, altered, of a newer format, or none at all."""
    file = TensorFile(path)
    try:
        described = Description.from_dict(file.header.metadata)
        _check_entries(file, described)
    except LongFocusError as error:
        raise type(error)(f"{path} cannot be used: {_short(error)}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LongFocusError(
            f"{path} is not a document memory, or was altered: its description makes no sense ({_short(error)}). Copy "
            "the file again, or read the text again."
        ) from error
    present = file.header.entries
    text, offsets = (file.tensor(n) if n in present else None for n in ("text", "offsets"))
    layers = {layer: _mapped(file, layer) for layer in described.memory_layers}
    return Opened(described, layers, Content(file.tensor("token_ids"), text, offsets), file)


def _short(error: Exception) -> str:
    """What an error says, of which a hostile file could make pages."""
    told = str(error)
    return told if len(told) <= _TOLD_CHARACTERS else f"{told[:_TOLD_CHARACTERS]}..."


def _name(layer: int, what: str) -> str:
    return f"layers.{layer}.{what}"


def _check_entries(file: TensorFile, described: Description) -> None:
    """Raise ValueError unless the file holds just the tensors that its description needs."""
    kinds = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    pairs = (described.kv_heads, described.tokens, described.head_dim)
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "token_ids": (("I32",), (described.tokens,))
    }
    for layer in described.memory_layers:
        for what in _PAIRS:
            expected[_name(layer, what)] = ((kinds[described.dtype],), pairs)
            if described.dtype == "int8":
                expected[_name(layer, f"{what}_scale")] = (("F32",), pairs[:2])
    present = file.header.entries
    if described.source_characters:
        expected["text"] = (("U8",), (present["text"].nbytes if "text" in present else 0,))
    if "offsets" in present:
        expected["offsets"] = (("I32", "I64"), (described.tokens, 2))
    if set(expected) != set(present):
        raise ValueError(f"it should hold {sorted(expected)}, and holds {sorted(present)}")
    for name, (dtypes, shape) in expected.items():
        if present[name].dtype not in dtypes or present[name].shape != shape:
            raise ValueError(f"{name} is {present[name].dtype} {present[name].shape}")


def _mapped(file: TensorFile, layer: int) -> Part:
    """Pairs on a mapped file, verified when they are first looked at."""
    present = file.header.entries
    names = [name for name in present if name.startswith(_name(layer, ""))]
    key, value = (file.tensor(_name(layer, what))[None] for what in _PAIRS)
    scales = None
    if _name(layer, "key_scale") in present:
        scales = Scales(*(file.tensor(_name(layer, f"{what}_scale"))[None] for what in _PAIRS))
    return Part(key, value, scales=scales, touch=_Touch(file, names))


class _Touch:
    """Verifies some tensors of a file, once."""

    def __init__(self, file: TensorFile, names: list[str]) -> None:
        self.file, self.waiting = file, set(names)

    def __call__(self) -> None:
        for name in list(self.waiting):
            self.file.verify(name)
            tensor = self.file.tensor(name)
            # what a scale makes of int8 must be finite too
            largest = LARGEST if name.endswith("_scale") else 1
            for some in tensor.flatten().split(_CHECKED_ELEMENTS):
                if not (torch.stack(some.aminmax()) * largest).isfinite().all():
                    raise LongFocusError(
                        f"{self.file.path} holds keys or values that are NaN or infinite ({name}), which would spoil "
                        "every answer. Read the text again."
                    )
            # another thread may have been here
            self.waiting.discard(name)
