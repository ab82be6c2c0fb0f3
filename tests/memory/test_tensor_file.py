"""A file of tensors gives back what was written, bit for bit, and notices when it was not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longfocus import LongFocusError
from longfocus.memory import tensor_file
from longfocus.memory.header import BLOCK_BYTES, DTYPES, ENTRY, Header, layout
from longfocus.memory.tensor_file import TensorFile, file_checksum, write_tensors

METADATA = {"name": "owl 🦉", "numbers": [1, 2.5, None, True], "inner": {"b": '\x00\n"\\', "a": ""}}
SHAPES = [(), (1,), (0,), (63,), (3, 0, 5), (2, 7, 5), (1, 1, 1, 3)]
BORDERS = [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape) * 100).to(dtype)


def written(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None
) -> TensorFile:
    write_tensors(path, tensors, METADATA if metadata is None else metadata)
    return TensorFile(path)


def assert_same(file: TensorFile, tensors: dict[str, Tensor]) -> None:
    assert set(file.header.entries) == set(tensors)
    for name, tensor in tensors.items():
        file.verify(name)
        found = file.tensor(name)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        # as bytes: NaN is not equal to itself
        assert bytes_of(found) == bytes_of(tensor)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_and_shape_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"t{place}": numbers(shape, dtype) for place, shape in enumerate(SHAPES)}
    file = written(tmp_path / "f", tensors)
    assert_same(file, tensors)
    assert file.header.metadata == METADATA


def test_types_of_odd_sizes_lie_together_and_aligned(tmp_path: Path) -> None:
    tensors = {
        f"{name} {n}": numbers((n,), dtype) for name, dtype in DTYPES.items() for n in (1, 3)
    }
    file = written(tmp_path / "f", tensors)
    assert_same(file, tensors)
    for name, tensor in tensors.items():
        assert file.tensor(name).data_ptr() % tensor.element_size() == 0


def test_values_that_are_no_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    assert_same(written(tmp_path / "f", {"odd": odd}), {"odd": odd})


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    assert_same(written(tmp_path / "f", {}), {})


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, ::2],
        lambda t: t[1:, :, 1:4],
        lambda t: t.mT,
        lambda t: t.permute(2, 0, 1),
        lambda t: t[0, 0, :1].expand(5, 3),
        lambda t: t[:, 3:3],
        lambda t: t.clone().requires_grad_(),
    ],
    ids=["strided", "slice", "transposed", "permuted", "expanded", "empty", "requires_grad"],
)
def test_views_are_written_as_their_copies_are(
    view: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    seen = view(numbers((3, 14, 6), torch.float32))
    assert_same(written(tmp_path / "view", {"t": seen}), {"t": seen})
    write_tensors(tmp_path / "copy", {"t": seen.detach().clone()}, METADATA)
    assert (tmp_path / "view").read_bytes() == (tmp_path / "copy").read_bytes()


@pytest.mark.parametrize("nbytes", BORDERS)
def test_contents_around_the_borders_of_blocks_come_back(nbytes: int, tmp_path: Path) -> None:
    # lines of 7 bytes, of which 5 are seen: no piece ends where a block does
    wide = torch.randint(256, (nbytes // 5 + 1, 7), dtype=torch.uint8)
    tensors = {"whole": wide.flatten()[:nbytes], "view": wide[:, :5]}
    file = written(tmp_path / "f", tensors)
    assert_same(file, tensors)
    assert len(file.header.checksums["whole"]) == -(-nbytes // BLOCK_BYTES)


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {name: numbers((9, n), dtype) for n, (name, dtype) in enumerate(DTYPES.items())}
    write_tensors(tmp_path / "one", tensors, METADATA)
    turned = dict(reversed(tensors.items())), dict(reversed(METADATA.items()))
    write_tensors(tmp_path / "two", *turned)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_checksum_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    tensors = {"a": numbers((BLOCK_BYTES // 4, 3), torch.float32), "b": numbers((5,), torch.int8)}
    expected = file_checksum(tensors, METADATA)
    assert written(tmp_path / "f", tensors).header.checksum == expected
    assert file_checksum(tensors, {**METADATA, "name": "other"}) != expected
    tensors["b"][4] += 1
    assert file_checksum(tensors, METADATA) != expected


def test_any_reader_of_safetensors_reads_the_file(tmp_path: Path) -> None:
    tensors = {name: numbers((3, 5), dtype) for name, dtype in DTYPES.items()}
    tensors["nothing"] = torch.empty(0, 4)
    write_tensors(tmp_path / "f.safetensors", tensors, METADATA)
    found = load_file(tmp_path / "f.safetensors")
    assert set(found) == set(tensors)
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())


def altered(path: Path, place: int) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 5, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 6])
def test_only_the_block_of_a_flipped_bit_is_refused(place: int, tmp_path: Path) -> None:
    size = 2 * BLOCK_BYTES + 7
    file = written(tmp_path / "f", {"a": torch.zeros(size, dtype=torch.uint8), "b": torch.ones(3)})
    altered(tmp_path / "f", file.nbytes - size + place)
    file, hit = TensorFile(tmp_path / "f"), place // BLOCK_BYTES
    file.verify("b")
    for block in range(3):
        start, stop = block * BLOCK_BYTES, min(size, (block + 1) * BLOCK_BYTES)
        if block != hit:
            file.verify("a", start, stop)
            continue
        for some in ((start, stop), (start, start + 1), (stop - 1, stop), (0, size)):
            with pytest.raises(
                LongFocusError, match=f"f was altered or damaged: block {hit} of 'a'"
            ):
                file.verify("a", *some)


def test_a_block_is_hashed_when_it_is_first_verified_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "f", {"a": torch.zeros(3 * BLOCK_BYTES, dtype=torch.uint8)})
    hashed = []
    real = tensor_file.checksum
    monkeypatch.setattr(
        tensor_file, "checksum", lambda data: hashed.append(len(data)) or real(data)
    )
    TensorFile(tmp_path / "f")
    file.tensor("a")
    assert hashed == []
    file.verify("a", BLOCK_BYTES - 1, BLOCK_BYTES)
    file.verify("a", 0, 1)
    assert hashed == [BLOCK_BYTES]
    file.verify("a")
    file.verify("a")
    assert hashed == [BLOCK_BYTES] * 3


def test_writing_to_a_tensor_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    file = written(tmp_path / "f", {"a": torch.zeros(8)})
    before = (tmp_path / "f").read_bytes()
    file.tensor("a").fill_(1.0)
    assert (tmp_path / "f").read_bytes() == before
    assert TensorFile(tmp_path / "f").tensor("a").equal(torch.zeros(8))


def test_tensors_outlive_the_file_and_its_object(tmp_path: Path) -> None:
    tensor = written(tmp_path / "f", {"a": torch.arange(8.0)}).tensor("a")
    (tmp_path / "f").unlink()
    assert tensor.equal(torch.arange(8.0))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header as JSON, and the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def padded(header: str) -> bytes:
    return (header + " " * (-(8 + len(header)) % 64)).encode()


@pytest.mark.parametrize(
    "spelled",
    [
        lambda given: json.dumps(given),
        lambda given: json.dumps(given, indent=1),
        lambda given: json.dumps(dict(reversed(given.items())), separators=(",", ":")),
        lambda given: json.dumps(given, sort_keys=True, separators=(",", ":")).replace(
            "a", "\\u0061"
        ),
        lambda given: json.dumps(given, sort_keys=True, separators=(",", ":")) + " " * 64,
    ],
    ids=["spaces", "lines", "order", "escapes", "padding"],
)
def test_a_header_has_one_spelling(spelled: Callable[[dict], str], tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensors(path, {"a": torch.ones(3), "b": torch.ones(2)}, METADATA)
    given, data = header_of(path)
    usual = padded(json.dumps(given, sort_keys=True, separators=(",", ":")))
    assert path.read_bytes() == with_header(usual, data)
    path.write_bytes(with_header(padded(spelled(given)), data))
    with pytest.raises(LongFocusError, match="f was altered or damaged: its header"):
        TensorFile(path)


def test_metadata_of_many_megabytes_are_refused_only_beyond_the_limit(tmp_path: Path) -> None:
    long = {"text": "x" * 2**20}
    assert written(tmp_path / "f", {"a": torch.ones(1)}, long).header.metadata == long
    too_long = struct.pack("<Q", 2**25 + 64) + b" " * (2**25 + 64)
    (tmp_path / "f").write_bytes(too_long)
    with pytest.raises(
        LongFocusError, match=r"should have 33,554,496 bytes, of at most 33,554,432"
    ):
        TensorFile(tmp_path / "f")


def test_entries_and_checksums_are_those_of_the_tensors() -> None:
    tensors = {"b": torch.ones(2, dtype=torch.int8), "a": torch.ones(3), "c": torch.ones(0)}
    entries = layout(tensors)
    assert [(name, e.start, e.nbytes) for name, e in entries.items()] == [
        ("a", 0, 12),
        ("c", 12, 0),
        ("b", 12, 2),
    ]
    header = Header({}, entries, {"a": ["x"], "b": ["y"], "c": []})
    spelled = header.to_bytes()
    assert len(spelled) % 64 == 0
    assert Header.from_bytes(spelled) == header
    assert ENTRY in json.loads(spelled[8:])["__metadata__"]
