"""How a document memory lies in its file: which tensors there are, and how they are opened without being read."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int, UInt8
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory.base import Part
from longfocus.memory.description import Description
from longfocus.memory.header import DTYPES
from longfocus.memory.pairs_file import mapped_part
from longfocus.memory.sorting import side_by_side
from longfocus.memory.tensor_file import TensorFile

_TOLD_CHARACTERS = 300


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
        own = _sorted_tensors(part) if part.clusters is not None else _plain_tensors(part)
        found |= {_name(layer, name): tensor[0] for name, tensor in own.items()}
    return found


def _plain_tensors(part: Part) -> dict[str, Tensor]:
    scales = {}
    if part.scales is not None:
        scales = {"key_scale": part.scales.key, "value_scale": part.scales.value}
    return {"key": part.key, "value": part.value, **scales}


def _sorted_tensors(part: Part) -> dict[str, Tensor]:
    assert part.clusters is not None
    found = {
        "pairs": side_by_side(part.key, part.value),
        "centroids": part.clusters.centroids,
        "spread": part.clusters.spread,
        "starts": part.clusters.starts,
        "order": part.clusters.order,
    }
    if part.scales is not None:
        found["scales"] = side_by_side(*part.scales)
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
    layers = {layer: mapped_part(file, _name(layer, "")) for layer in described.memory_layers}
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
    own = {
        "key": ((kinds[described.dtype],), pairs),
        "value": ((kinds[described.dtype],), pairs),
        "key_scale": (("F32",), pairs[:2]),
        "value_scale": (("F32",), pairs[:2]),
    }
    if described.clusters:
        heads, tokens, dim = pairs
        own = {
            "pairs": ((kinds[described.dtype],), (heads, tokens, 2, dim)),
            "centroids": (("F32",), (heads, described.clusters, dim)),
            "spread": (("F32",), (heads, described.clusters)),
            "starts": (("I64",), (heads, described.clusters + 1)),
            "order": (("I32",), (heads, tokens)),
            "scales": (("F32",), (heads, tokens, 2)),
        }
    for layer in described.memory_layers:
        for what, kind in own.items():
            if described.dtype == "int8" or "scale" not in what:
                expected[_name(layer, what)] = kind
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
