"""Files of sorted documents are as they were written, are verified where they are looked at, or are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from corruption import flipped, forged, refusal, regions
from small_documents import DIM, KV_HEADS, LAYERS, small_document
from sorted_parts import best_blocks, groups
from torch import Tensor

from long import mostly_long
from longfocus import DocumentMemory, LongFocusError
from longfocus.memory import Part, dense
from longfocus.memory.audit import Width
from longfocus.memory.clustered import FIRST, Clustered
from longfocus.memory.header import BLOCK_BYTES
from longfocus.memory.sorting import in_order
from longfocus.memory.tensor_file import TensorFile
from longfocus.memory.trusted import PairsFile

DTYPES = ("float32", "bfloat16", "int8")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
TEXT = "One key opens nine doors. " * 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short documents are worth sorting here."""
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 100)


def sorted_document(dtype: str = "float32", **changes: object) -> DocumentMemory:
    return small_document(text=TEXT, **changes).clustered().to(dtype)


def saved(tmp_path: Path, dtype: str = "float32") -> Path:
    path = tmp_path / "owl.safetensors"
    sorted_document(dtype).save(path)
    return path


def tensors(part: Part) -> list[Tensor]:
    assert part.clusters is not None
    own = part.clusters
    return [
        *(part.key, part.value, *(part.scales or ())),
        *(own.centroids, own.spread, own.starts, own.order),
    ]


def pinned(width: float = 1e30) -> Clustered:
    search = Clustered(1e-9)
    search.audit.width = Width(width, FIRST)
    # the first query is not audited: that would look at everything
    search.audit._until_next = 2**40
    return search


def looked_at(part: Part, search: Clustered | None = None) -> Tensor:
    query = torch.randn(1, 2 * part.key.shape[1], 3, part.key.shape[3])
    return (search or pinned())(query, [part], scale=0.5).output


@every_dtype
def test_a_sorted_document_is_what_was_saved(dtype: str, tmp_path: Path) -> None:
    given = sorted_document(dtype)
    path = saved(tmp_path, dtype)
    assert path.read_bytes() == saved(tmp_path, dtype).read_bytes()
    found = DocumentMemory.load(path)
    assert found.hash == given.hash
    assert found.description == given.description
    assert found.description.clusters == 32
    found.verify()
    for layer in LAYERS:
        for one, other in zip(
            tensors(found.layers[layer]), tensors(given.layers[layer]), strict=True
        ):
            assert one.dtype == other.dtype
            assert one.equal(other)
        assert isinstance(found.layers[layer].file, PairsFile)
    again = tmp_path / "again.safetensors"
    found.save(again)
    assert again.read_bytes() == path.read_bytes()


@every_dtype
def test_sorting_keeps_a_document_and_leaves_short_ones(dtype: str) -> None:
    plain, made = small_document(text=TEXT).to(dtype), sorted_document(dtype)
    assert made.clustered() is made
    assert made.description.dtype == dtype
    assert plain.clustered().description == made.description
    assert made.nbytes == plain.nbytes
    short = small_document(text=TEXT[:99])
    assert short.clustered() is short
    assert small_document(text=TEXT[:100]).clustered().description.clusters > 0
    for layer in LAYERS:
        one, other = in_order(made.layers[layer]), plain.layers[layer]
        for mine, theirs in (
            (one.key, other.key),
            (one.value, other.value),
            *zip(one.scales or (), other.scales or (), strict=True),
        ):
            assert mine.equal(theirs)


@every_dtype
def test_a_loaded_document_answers_as_the_one_saved(dtype: str, tmp_path: Path) -> None:
    given, found = sorted_document(dtype), DocumentMemory.load(saved(tmp_path, dtype))
    query = torch.randn(2, 2 * KV_HEADS, 3, DIM)
    for layer in LAYERS:
        for search in (dense, pinned(), pinned(1e-12)):
            one, other = (search(query, [own.layers[layer]], scale=0.5) for own in (given, found))
            assert one.output.equal(other.output)
            assert one.lse.equal(other.lse)


def test_a_loaded_document_is_converted_and_stays_sorted(tmp_path: Path) -> None:
    found = DocumentMemory.load(saved(tmp_path)).to("int8")
    assert found.description.clusters == 32
    for layer in LAYERS:
        for one, other in zip(
            tensors(found.layers[layer]),
            tensors(sorted_document("int8").layers[layer]),
            strict=True,
        ):
            assert one.equal(other)


@pytest.mark.parametrize("dtype", mostly_long(DTYPES, "int8"))
def test_whatever_byte_is_altered_it_is_refused_when_it_is_used(dtype: str, tmp_path: Path) -> None:
    path = saved(tmp_path, dtype)
    data = path.read_bytes()
    names = ["pairs", "centroids", "spread", "starts", "order"]
    names += ["scales"] if dtype == "int8" else []
    for layer in LAYERS:
        for name in names:
            start, stop = regions(path)[f"layers.{layer}.{name}"]
            for byte in (start, (start + stop) // 2, stop - 1):
                damaged = flipped(data, 8 * byte + 1)
                told = refusal(path, f"{name} at {byte}", damaged)
                assert told.moment == "verify"
                assert "altered or damaged" in told.told
                other = next(one for one in LAYERS if one != layer)
                found = DocumentMemory.load(path)
                # other layers are what they were
                looked_at(found.layers[other])
                for search in (pinned(), pinned(1e-12), pinned()):
                    with pytest.raises(LongFocusError, match="altered or damaged") as error:
                        looked_at(found.layers[layer], search)
                    assert str(path) in str(error.value)
                path.write_bytes(data)


def _starts(values: list[int]) -> Callable[[Tensor], Tensor]:
    """The first starts of the first head become others."""

    def change(tensor: Tensor) -> Tensor:
        tensor[0, : len(values)] = torch.tensor(values)
        return tensor

    return change


def _put(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return change


FORGERIES: dict[str, tuple[str, str, Callable[[Tensor], Tensor], str]] = {
    "starts that overlap": ("float32", "starts", _starts([0, 90, 40, 90]), "overlap"),
    "starts behind the end": ("float32", "starts", _starts([0, 10**6, 10**6]), "overlap"),
    "starts before the beginning": ("float32", "starts", _starts([-8, 0]), "overlap"),
    # differences of int64 wrap around: none of these is negative
    "starts that overflow": (
        "float32",
        "starts",
        _starts([0, 2**63 - 1, -(2**63) + 10, 0]),
        "overlap",
    ),
    "starts that leave out the first": ("float32", "starts", lambda t: t.clamp(min=1), "overlap"),
    "starts that leave out the last": (
        "float32",
        "starts",
        lambda t: t.clamp(max=int(t.max()) - 1),
        "overlap",
    ),
    "an order with a pair twice": ("float32", "order", _put(0), "a pair is missing"),
    "an order that is negative": ("float32", "order", _put(-1), "a pair is missing"),
    "an order behind the end": ("float32", "order", _put(10**6), "a pair is missing"),
    "negative spread": ("float32", "spread", _put(-1), "it is negative"),
    "spread that is NaN": ("float32", "spread", _put(torch.nan), "NaN or infinite"),
    "centroids that are NaN": ("float32", "centroids", _put(torch.nan), "NaN or infinite"),
    "centroids that are infinite": ("bfloat16", "centroids", _put(torch.inf), "NaN or infinite"),
    "pairs that are NaN": ("float32", "pairs", _put(torch.nan), "NaN or infinite"),
    "pairs that are infinite": ("bfloat16", "pairs", _put(-torch.inf), "NaN or infinite"),
    "scales that are NaN": ("int8", "scales", _put(torch.nan), "NaN or infinite"),
    "scales that are too large": ("int8", "scales", _put(1e38), "NaN or infinite"),
}


@pytest.mark.parametrize(("dtype", "name", "change", "why"), FORGERIES.values(), ids=FORGERIES)
def test_what_makes_no_sense_is_refused_each_time_it_is_used(
    dtype: str, name: str, change: Callable[[Tensor], Tensor], why: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, dtype)
    name = f"layers.{LAYERS[0]}.{name}"
    tensor = change(TensorFile(path).tensor(name).clone())
    told = refusal(path, name, forged(path, tensors={name: tensor}))
    assert told.moment == "verify"
    assert why in told.told
    found = DocumentMemory.load(path)
    for _ in range(2):
        for use in (found.verify, lambda: looked_at(found.layers[LAYERS[0]], pinned(1e-12))):
            with pytest.raises(LongFocusError, match=why):
                use()
    looked_at(found.layers[LAYERS[1]])


def test_tensors_of_another_shape_are_refused_when_opened(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    for what in ("pairs", "centroids", "spread", "starts", "order"):
        name = f"layers.{LAYERS[0]}.{what}"
        tensor = TensorFile(path).tensor(name)
        for changed in (tensor[:1], tensor[:, :-1], tensor.to(torch.float64), None):
            path.write_bytes(data)
            assert refusal(path, what, forged(path, tensors={name: changed})).moment == "open"
    path.write_bytes(data)
    for clusters in (0, 31, 33, -1, 1.5, "16", None, 2**70):
        forgery = forged(path, metadata={"clusters": clusters})
        assert refusal(path, f"{clusters} clusters", forgery).moment == "open"
        path.write_bytes(data)


def test_only_what_is_visited_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = groups()
    path = tmp_path / "owl.safetensors"
    small_document(text="x" * len(part), layers={1: part}).save(path)
    blocks: set[int] = set()
    verify = TensorFile.verify

    def counting(self: TensorFile, name: str, *own: int | None) -> list[int]:
        found = verify(self, name, *own)
        if name.endswith("pairs"):
            assert not blocks & set(found)
            blocks.update(found)
        return found

    monkeypatch.setattr(TensorFile, "verify", counting)
    found = DocumentMemory.load(path).layers[1]
    whole = -(-part.key.nbytes * 2 // BLOCK_BYTES)
    assert whole == 8
    assert part.clusters is not None
    query = 0.1 * part.clusters.centroids[:, :, 20:21]
    search = pinned()
    search.audit.width = Width(1e30, 1)
    one = search(query, [found], scale=1.0)
    # the best cluster of each head, and no other
    assert blocks == best_blocks(part, query)
    assert len(blocks) < whole
    other = search(query, [part], scale=1.0)
    assert one.output.equal(other.output)
    before = set(blocks)
    blocks.clear()
    search(query, [found], scale=1.0)
    assert not blocks
    blocks.update(before)
    found.verify()
    assert blocks == set(range(whole))


def test_damage_is_noticed_where_it_is_visited_and_not_elsewhere(tmp_path: Path) -> None:
    part = groups()
    assert part.clusters is not None
    path = tmp_path / "owl.safetensors"
    small_document(text="x" * len(part), layers={1: part}).save(path)
    first, *_, last = part.clusters.sizes[0].gt(0).all(0).nonzero()[:, 0].tolist()
    one, other = (0.1 * part.clusters.centroids[:, :, [place]] for place in (first, last))
    block = max(best_blocks(part, other) - best_blocks(part, one))
    start, _ = regions(path)["layers.1.pairs"]
    path.write_bytes(flipped(path.read_bytes(), 8 * (start + block * BLOCK_BYTES + 5)))
    found = DocumentMemory.load(path).layers[1]
    search = pinned()
    search.audit.width = Width(1e30, 1)
    search(one, [found], scale=1.0)
    for _ in range(2):
        with pytest.raises(LongFocusError, match=f"block {block}"):
            search(other, [found], scale=1.0)
