"""A damaged or forged file is refused with its name and a reason, before an answer is made of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from corruption import damaged, flipped, forged, odd_files, refusal, regions, without_longfocus
from small_documents import DIM, KV_HEADS, LAYERS, TEXT, answer, small_document

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory.description import ReadWith
from longfocus.memory.header import Entry
from longfocus.memory.tensor_file import TensorFile

DTYPES = ["float32", "bfloat16", "float16", "float64", "int8"]
TOKENS = len(TEXT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a document."""
    small_document().save(tmp_path / "owl.safetensors")
    return tmp_path / "owl.safetensors"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_document_comes_back(dtype: str, tmp_path: Path) -> None:
    document = small_document(metadata={"language": "en"}).to(dtype)
    document.save(tmp_path / "f")
    found = DocumentMemory.load(tmp_path / "f")
    found.verify()
    assert found.description == document.description
    assert found.hash == document.hash
    assert (found.text, found.name, found.path) == (TEXT, "owl", tmp_path / "f")
    assert found.token_ids.equal(document.token_ids)
    assert found.offsets is not None
    assert found.offsets.equal(document.offsets)
    assert answer(found).equal(answer(document))
    assert found.nbytes == document.nbytes
    found.save(tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes()


def test_a_document_of_bare_token_ids_comes_back(tmp_path: Path) -> None:
    document = small_document(text="x" * 9)
    bare = DocumentMemory.of(
        name="bare",
        layers=document.layers,
        token_ids=document.token_ids,
        read_with=document.description.read_with,
    )
    bare.save(tmp_path / "f")
    found = DocumentMemory.load(tmp_path / "f")
    found.verify()
    assert (found.text, found.offsets) == (None, None)
    assert answer(found).equal(answer(document))


def test_opening_reads_no_data(path: Path) -> None:
    places = regions(path)
    start = places["header"][1]
    path.write_bytes(path.read_bytes()[:start] + bytes(path.stat().st_size - start))
    document = DocumentMemory.load(path)
    assert (document.name, document.tokens) == ("owl", TOKENS)
    with pytest.raises(LongFocusError, match=r"owl\.safetensors was altered or damaged"):
        document.verify()


def test_hundreds_of_damaged_files_are_refused(path: Path) -> None:
    cases = list(damaged(path, 300))
    assert len(cases) > 200
    refused_at = Counter(refusal(path, what, data).moment for what, data in cases)
    # both are wanted: what the header shows, and what only the data show
    assert min(refused_at["open"], refused_at["verify"]) > 50


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_ten_thousand_damaged_files_are_refused(seed: int, path: Path) -> None:
    for what, data in damaged(path, 2100, seed):
        refusal(path, what, data)


@pytest.mark.long
def test_every_single_bit_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "f"
    small_document(text="owl").save(path)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        refusal(path, f"bit {bit}", flipped(data, bit))


def test_files_that_are_no_documents_are_refused(path: Path) -> None:
    cases = {**dict(odd_files(path)), "of another program": without_longfocus(path)}
    for what, data in cases.items():
        assert refusal(path, what, data).moment == "open", what


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_flipped_bit_of_keys_or_values_stops_the_model(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "owl"
    small_document().to(dtype).save(path)
    data, places = path.read_bytes(), regions(path)
    pairs = [name for name in places if name.startswith("layers.")]
    assert len(pairs) == len(LAYERS) * (4 if dtype == "int8" else 2)
    for name in pairs:
        start, stop = places[name]
        for place in (start, (start + stop) // 2, stop - 1):
            path.write_bytes(flipped(data, 8 * place))
            with pytest.raises(
                LongFocusError, match=rf"owl was altered or damaged: block 0 of '{name}'"
            ):
                answer(DocumentMemory.load(path))
    path.write_bytes(data)
    answer(DocumentMemory.load(path))


@pytest.mark.parametrize("use", ["text", "offsets", "token_ids"])
def test_a_flipped_bit_of_the_content_stops_its_use(use: str, path: Path) -> None:
    start, stop = regions(path)[use]
    data = path.read_bytes()
    for place in (start, stop - 1):
        path.write_bytes(flipped(data, 8 * place))
        document = DocumentMemory.load(path)
        # the answer does not depend on it
        assert answer(document).equal(answer(small_document()))
        with pytest.raises(
            LongFocusError, match=f"owl.safetensors was altered or damaged.*'{use}'"
        ):
            getattr(document, use)


def pairs_with(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    pairs = torch.randn(KV_HEADS, TOKENS, DIM)
    pairs[1, -1, -1] = value
    return pairs.to(dtype)


NAN, INFINITY = float("nan"), float("inf")
FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"metadata": {"format": "song"}}, "it is a 'song', and not"),
    "a newer version": ({"metadata": {"version": 2, "news": 1}}, "Install a newer LongFocus"),
    "a name of half a pair": ({"metadata": {"name": "\ud800"}}, "makes no sense"),
    "one token more": ({"metadata": {"tokens": TOKENS + 1}}, "makes no sense"),
    "another type": ({"metadata": {"dtype": "bfloat16"}}, "layers.1.key is F32"),
    "int8 without scales": ({"metadata": {"dtype": "int8"}}, "layers.1.key_scale"),
    "another shape": ({"metadata": {"kv_heads": 4, "head_dim": 4}}, "layers.1.key is F32"),
    "another layer": ({"metadata": {"memory_layers": [1, 2]}}, "layers.2.key"),
    "more layers": ({"metadata": {"memory_layers": list(range(5000))}}, "layers.0.key"),
    "a long entry": ({"metadata": {"format": "x" * 10**6}}, "it is a 'xxx"),
    "a layer left out": ({"tensors": {"layers.3.key": None}}, "it should hold"),
    "no token ids": ({"tensors": {"token_ids": None}}, "it should hold"),
    "no text": ({"tensors": {"text": None}}, "it should hold"),
    "a tensor too many": ({"tensors": {"more": torch.ones(3)}}, "and holds ['layers.1.key'"),
    "a hostile tensor": ({"tensors": {"../../x\x00\x1b[2J": torch.ones(3)}}, "it should hold"),
    "wide token ids": ({"tensors": {"token_ids": torch.ones(TOKENS).long()}}, "token_ids is I64"),
    "flat offsets": ({"tensors": {"offsets": torch.ones(2 * TOKENS).int()}}, "offsets is I32"),
    "offsets beyond the text": (
        {"tensors": {"offsets": torch.full((TOKENS, 2), TOKENS + 1).int()}},
        "they point beyond the text (offsets)",
    ),
    "negative offsets": ({"tensors": {"offsets": -torch.ones(TOKENS, 2).int()}}, "beyond the text"),
    "turned offsets": (
        {"tensors": {"offsets": torch.tensor([[2, 1]]).expand(TOKENS, 2).int()}},
        "beyond the text",
    ),
    "negative token ids": (
        {"tensors": {"token_ids": -torch.ones(TOKENS).int()}},
        "they are negative (token_ids)",
    ),
    "text that is no UTF-8": (
        {"tensors": {"text": torch.full((9,), 255, dtype=torch.uint8)}},
        "it is not UTF-8 (text)",
    ),
    "another text": (
        {"tensors": {"text": torch.full((TOKENS,), 65, dtype=torch.uint8)}},
        "it has another hash than the header says",
    ),
    "a shorter text": (
        {"tensors": {"text": torch.full((9,), 65, dtype=torch.uint8)}},
        "it has another length than the header says",
    ),
    "NaN keys": ({"tensors": {"layers.1.key": pairs_with(NAN)}}, "NaN or infinite (layers.1.key)"),
    "infinite values": (
        {"tensors": {"layers.3.value": pairs_with(INFINITY)}},
        "NaN or infinite (layers.3.value)",
    ),
    "negative shape": ({"entries": {"token_ids": Entry("I32", (-1,), 0)}}, "cannot be understood"),
    "huge shape": ({"entries": {"token_ids": Entry("I32", (2**62,), 0)}}, "altered or damaged"),
    "shape beyond any": ({"entries": {"text": Entry("U8", (2**63,), 0)}}, "cannot be understood"),
    "many dimensions": (
        {"entries": {"text": Entry("U8", (1,) * 10**5, 0)}},
        "cannot be understood",
    ),
    "overlapping": ({"entries": {"offsets": Entry("I32", (TOKENS, 2), 0)}}, "overlap"),
    "holes": ({"entries": {"text": Entry("U8", (len(TEXT.encode()),), 2**20)}}, "leave holes"),
    "another order": ({"entries": {"zzz": Entry("F64", (0,), 0)}}, "altered or damaged"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_file_is_refused(what: str, path: Path) -> None:
    changes, reason = FORGERIES[what]
    assert reason in refusal(path, what, forged(path, **changes)).told


def test_a_file_forged_without_a_change_is_the_file(path: Path) -> None:
    assert forged(path) == path.read_bytes()


@pytest.mark.parametrize("scale", [NAN, INFINITY, 1e38])
def test_scales_that_spoil_answers_are_refused(scale: float, tmp_path: Path) -> None:
    path = tmp_path / "owl"
    small_document().to("int8").save(path)
    scales = torch.full((KV_HEADS, TOKENS), scale)
    path.write_bytes(forged(path, tensors={"layers.3.key_scale": scales}))
    with pytest.raises(LongFocusError, match=r"owl holds keys or values that are NaN or infinite"):
        answer(DocumentMemory.load(path))


def test_a_type_that_cannot_hold_the_pairs_is_refused() -> None:
    document = small_document()
    document.layers[3].key[0, 1, 2, 3] = 1e6
    with pytest.raises(LongFocusError, match="too large for float16"):
        document.to("float16")


def test_another_thread_may_verify_the_same_pairs_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = DocumentMemory.load(path)
    file, verify, inside = document.layers[1].file, TensorFile.verify, []
    assert file is not None

    def slow(given: TensorFile, *named: Any) -> list[int]:
        read = verify(given, *named)
        if not inside:
            # another thread begins and ends here
            inside.append(named)
            file.verify()
        return read

    monkeypatch.setattr(TensorFile, "verify", slow)
    file.verify()
    assert inside


def test_a_file_that_does_not_say_its_model_is_of_no_use(tmp_path: Path) -> None:
    document = small_document(read_with=ReadWith("window_start", 13))
    # whoever made it in this process knows what it is
    assert answer(document).shape[1] == 9
    document.save(tmp_path / "owl")
    found = DocumentMemory.load(tmp_path / "owl")
    found.verify()
    for use in (answer, lambda used: used.to("int8"), lambda used: answer(used.renamed("other"))):
        with pytest.raises(LongFocusError, match=r"owl does not say which model it was read by"):
            use(found)
