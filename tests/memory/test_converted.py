"""A document in another number type: the same as converted at once, in little more space than the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_documents import small_document
from torch.utils._python_dispatch import TorchDispatchMode

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory import base
from longfocus.memory.description import DTYPES
from longfocus.memory.quantized import quantize
from space import address, elements, tensors


class Sizes(TorchDispatchMode):
    """Elements of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {address(tensor) for tensor in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.made += [elements(t) for t in tensors(result) if address(t) not in given]
        return result


def pairs(document: DocumentMemory) -> list[torch.Tensor]:
    return [t for part in document.layers.values() for t in (part.key, part.value)]


@pytest.mark.parametrize("elements", [1, 200, 2**19])
def test_blocks_of_any_size_give_what_all_at_once_gives(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CONVERTED_ELEMENTS", elements)
    document = small_document()
    for dtype in ("bfloat16", "float16", "float64"):
        found = document.to(dtype)
        assert found.description.dtype == dtype
        for one, other in zip(pairs(found), pairs(document), strict=True):
            assert one.equal(other.to(getattr(torch, dtype)))
    found = document.to("int8")
    for layer, part in found.layers.items():
        assert part.scales is not None
        for steps, scale, before in zip(
            (part.key, part.value), part.scales, pairs(document)[2 * (layer // 2) :], strict=False
        ):
            expected, scales = quantize(before)
            assert steps.equal(expected)
            assert scale.equal(scales)
    wide = found.to("float32")
    assert wide.layers[1].key.equal(found.layers[1].keys(0, found.tokens, torch.float32))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float64"])
@pytest.mark.parametrize("is_file", [False, True])
def test_no_layer_is_held_twice(
    dtype: str, is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CONVERTED_ELEMENTS", 2**10)
    document = small_document(text="owl " * 500)
    if is_file:
        document.save(tmp_path / "owl")
        document = DocumentMemory.load(tmp_path / "owl")
    layer = document.layers[1].key.numel()
    assert layer > 16 * 2**10
    with Sizes() as sizes:
        document.to(dtype)
    # keys and values of two layers, side by side
    assert [size for size in sizes.made if size > layer // 2] == [2 * layer] * 2


@pytest.mark.parametrize("dtype", ["int32", "nonsense", "", "layout"])
def test_types_that_no_file_can_have_are_refused(dtype: str) -> None:
    with pytest.raises(LongFocusError, match="cannot be of type") as refused:
        small_document().to(dtype)
    assert all(name in str(refused.value) for name in DTYPES)
