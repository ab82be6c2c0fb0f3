"""Reading makes one document memory of a source: the same pairs, however they are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import longfocus
from long import mostly_long
from longfocus.hf.attachment import Attachment
from longfocus.memory import Part
from longfocus.memory.sorting import in_order
from small import (
    TEXT,
    WINDOW,
    assert_same_pairs,
    byte_tokenizer,
    ids_of,
    keys,
    session,
    small_model,
)

every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 1)], (0, 1)), ids=str)
every_position = pytest.mark.parametrize("positions", ["window_start", "none"])


@pytest.fixture
def one_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longfocus.inference.reader.BATCH_TOKENS", 1)


@every_memory
def test_every_kind_of_source_gives_the_same_document(
    layers: tuple[int, ...], tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    pieces = [TEXT[:1], "", TEXT[1:40], TEXT[40:41], TEXT[41:]]
    reading = session(layers)
    first = reading.read(TEXT)
    assert first.token_ids.equal(ids_of(TEXT))
    texts = [file, pieces, iter(pieces), (piece for piece in pieces)]
    for source in texts:
        found = reading.read(source)
        assert_same_pairs(found, first)
        assert found.text == first.text == TEXT
        assert found.offsets is not None
        assert found.offsets.equal(first.offsets)
    ids = ids_of(TEXT)
    for given in (ids, ids.tolist(), tuple(ids.tolist()), ids[None], ids.int(), ids.numpy()):
        found = reading.read(given)
        assert_same_pairs(found, first)
        assert found.text is found.offsets is None
    assert len(reading.documents) == 11
    assert reading.tokens == 11 * len(ids)
    assert reading.nbytes == 11 * sum(tensor.nbytes for tensor in keys(first))


def test_a_text_read_in_pieces_is_the_same_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = session().read(TEXT)
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    for size in (7, 30):
        monkeypatch.setattr("longfocus.inference.source.PIECE", size)
        for source in (TEXT, tmp_path / "text.txt", [TEXT[:50], TEXT[50:]]):
            found = session().read(source)
            assert_same_pairs(found, whole)
            assert found.text == TEXT
            assert found.offsets is not None
            assert found.offsets.equal(whole.offsets)


@every_position
@every_memory
def test_reading_equals_a_prompt_that_leaves_nothing_in_the_window(
    layers: tuple[int, ...], positions: str, one_window_at_a_time: None
) -> None:
    model = small_model(layers, positions=positions)
    ids = ids_of(TEXT)
    cache = longfocus.FocusCache(model)
    with torch.no_grad():
        # the last piece of the prompt is what is left over after whole windows
        model(
            ids[None],
            past_key_values=cache,
            use_cache=False,
            last_context_length=len(ids) % WINDOW,
        )
    document = session(layers, positions=positions).read(TEXT)
    assert len(ids) % WINDOW > 0
    for layer in layers:
        assert cache.memory_keys(layer).equal(document.layers[layer].key)
        assert cache.memory_values(layer).equal(document.layers[layer].value)


@every_position
@pytest.mark.parametrize("memory_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("layers", [(1,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("length", [1, WINDOW - 1, 5 * WINDOW + 3])
def test_windows_read_as_a_batch_equal_windows_read_one_by_one(
    length: int,
    layers: tuple[int, ...],
    memory_dtype: str | None,
    positions: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = ids_of(TEXT)[:length]
    documents = []
    for tokens in (1, 8192, 3 * WINDOW):
        monkeypatch.setattr("longfocus.inference.reader.BATCH_TOKENS", tokens)
        model = small_model(layers, positions=positions, memory_dtype=memory_dtype)
        documents.append(longfocus.read_document(model, None, ids, window_prefix=(1, 5)))
    # rounding to few bits now and then goes the other way
    tolerance = {None: 1e-5, "bfloat16": 2e-2, "int8": 2e-2}[memory_dtype]
    for document in documents[1:]:
        assert_close_pairs(document, documents[0], tolerance)


def assert_close_pairs(
    one: longfocus.DocumentMemory, other: longfocus.DocumentMemory, tolerance: float
) -> None:
    for layer, part in one.layers.items():
        for numbers in (Part.keys, Part.values):
            found, expected = (
                numbers(p, 0, len(p), torch.float32) for p in (part, other.layers[layer])
            )
            assert found.shape == expected.shape
            assert (found - expected).abs().amax() <= tolerance * expected.abs().amax()


@pytest.mark.parametrize("search", ["exact", "clustered", "faiss"])
def test_windows_read_as_a_batch_search_what_windows_read_one_by_one_do(
    search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 40)
    monkeypatch.setattr("longfocus.memory.store.TAIL", 20)
    ids = ids_of(4 * TEXT)
    documents = []
    for tokens in (1, 4 * WINDOW):
        monkeypatch.setattr("longfocus.inference.reader.BATCH_TOKENS", tokens)
        model = small_model((0, 1), search=search, top_k=10_000, retain=0.999999)
        documents.append(longfocus.read_document(model, None, ids))
    one, other = ({k: in_order(part) for k, part in d.layers.items()} for d in documents)
    for layer, part in one.items():
        torch.testing.assert_close(part.key, other[layer].key, atol=1e-4, rtol=0)
        torch.testing.assert_close(part.value, other[layer].value, atol=1e-4, rtol=0)


@every_memory
def test_as_many_windows_are_read_at_a_time_as_a_batch_has_tokens(
    layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = small_model(layers), []
    read_window = type(model).read_window

    def counted(self: Any, memory: Any, input_ids: Tensor) -> None:
        sizes.append(tuple(input_ids.shape))
        read_window(self, memory, input_ids)

    monkeypatch.setattr(type(model), "read_window", counted)
    monkeypatch.setattr("longfocus.inference.reader.BATCH_TOKENS", 4 * WINDOW + 3)
    session(layers).read(ids_of(TEXT)[: 6 * WINDOW + 1])
    assert sizes == [(4, WINDOW), (2, WINDOW), (1, 1)]


@every_memory
def test_documents_are_read_in_isolation_so_their_order_does_not_matter(
    layers: tuple[int, ...],
) -> None:
    one, other = session(layers), session(layers)
    texts = [TEXT, TEXT[::-1], "short"]
    first = [one.read(text) for text in texts]
    second = [other.read(text) for text in texts[::-1]][::-1]
    for document, same in zip(first, second, strict=True):
        assert_same_pairs(document, same)


@every_position
@every_memory
def test_stopping_early_changes_no_bit(
    layers: tuple[int, ...], positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = session(layers, positions=positions)
    with calls_of(reading.model.model.layers[2]) as calls:
        early = reading.read(TEXT)
        assert calls == []
        monkeypatch.setattr(Attachment, "last_layer", None)
        assert_same_pairs(reading.read(TEXT), early)
    assert len(calls) > 0


@contextmanager
def calls_of(module: torch.nn.Module) -> Iterator[list[int]]:
    """Length of the first input, [batch, length, ...], of every call of a module."""
    lengths: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    try:
        yield lengths
    finally:
        handle.remove()


@pytest.mark.parametrize("stops_early", [True, False])
def test_logits_are_never_made_for_more_than_one_position(
    stops_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stops_early:
        monkeypatch.setattr(Attachment, "last_layer", None)
    reading = session((0, 2))
    with calls_of(reading.model.lm_head) as lengths:
        reading.read(TEXT)
        assert set(lengths) == (set() if stops_early else {1})
        reading.ask(TEXT, max_new_tokens=3)
    assert set(lengths) == {1}


def test_reading_evaluates_and_leaves_modes_and_random_numbers_and_builds_no_graph() -> None:
    reading = session()
    model = reading.model
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state, during = torch.get_rng_state(), []
    first = model.model.layers[0]
    handle = first.register_forward_pre_hook(lambda *_: during.append(model.training))
    try:
        document = reading.read(TEXT)
        assert set(during) == {False}
        assert [module.training for module in model.modules()] == modes
    finally:
        handle.remove()
        model.eval()
    assert torch.get_rng_state().equal(state)
    assert not any(tensor.requires_grad for tensor in keys(document))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_same_pairs(document, reading.read(TEXT))


@pytest.mark.parametrize("prefix", [(), (1,), (5, 9, 7)])
@every_memory
def test_a_prefix_begins_every_window_and_is_not_remembered(
    layers: tuple[int, ...], prefix: tuple[int, ...], one_window_at_a_time: None
) -> None:
    model, ids = small_model(layers), ids_of(TEXT)
    document = longfocus.read_document(model, byte_tokenizer(), TEXT, window_prefix=prefix)
    assert document.token_ids.equal(ids)
    inside = WINDOW - len(prefix)
    # the first window alone, and all earlier ones in memory for the last
    for start in range(0, len(ids), inside):
        window = ids[start : start + inside]
        earlier = [
            longfocus.DocumentMemory.of(
                name="earlier",
                layers={layer: first_pairs(document, layer, start) for layer in layers},
                token_ids=ids[:start],
                read_with=document.description.read_with,
            )
            for _ in range(min(start, 1))
        ]
        cache = longfocus.FocusCache(model, earlier)
        with torch.no_grad():
            model(torch.cat([torch.tensor(prefix).long(), window])[None], past_key_values=cache)
        for layer in layers:
            expected = cache.window_keys(layer)[:, :, len(prefix) :]
            found = document.layers[layer].key[:, :, start : start + inside]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def first_pairs(document: longfocus.DocumentMemory, layer: int, stop: int) -> Part:
    part = document.layers[layer]
    return Part(part.key[:, :, :stop], part.value[:, :, :stop])


def test_a_prefix_may_be_named_bos() -> None:
    model = small_model()
    by_name = longfocus.Session(model, byte_tokenizer(), window_prefix="bos").read(TEXT)
    by_id = longfocus.Session(model, byte_tokenizer(), window_prefix=[1]).read(TEXT)
    without = longfocus.Session(model, byte_tokenizer()).read(TEXT)
    assert_same_pairs(by_name, by_id)
    assert not keys(by_name)[0].equal(keys(without)[0])


def test_progress_counts_tokens_and_says_when_it_was_all(one_window_at_a_time: None) -> None:
    reports: list[tuple[int, bool]] = []
    model, ids = small_model((0, 1)), ids_of(TEXT)
    longfocus.read_document(
        model, byte_tokenizer(), TEXT, progress=lambda *report: reports.append(report)
    )
    steps = [*range(WINDOW, len(ids), WINDOW), len(ids)]
    assert reports == [*((step, False) for step in steps), (len(ids), True)]


def test_a_progress_bar_is_drawn_on_stderr_when_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for wanted in (False, True):
        session().read(TEXT, name="owl", progress=wanted)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("owl" in shown.err and "tokens" in shown.err) == wanted


def test_pairs_are_kept_in_the_type_of_the_memory() -> None:
    narrow, wide = session(memory_dtype="bfloat16").read(TEXT), session().read(TEXT)
    for one, other in zip(keys(narrow), keys(wide), strict=True):
        assert one.dtype == torch.bfloat16
        assert one.equal(other.bfloat16())


@every_memory
def test_no_more_room_is_kept_than_the_pairs_take(
    layers: tuple[int, ...], one_window_at_a_time: None
) -> None:
    document = longfocus.read_document(small_model(layers), byte_tokenizer(), TEXT)
    for tensor in keys(document):
        # keys and values lie side by side
        assert tensor.untyped_storage().nbytes() == 2 * tensor.nbytes


@every_memory
def test_a_search_by_clusters_sorts_the_pairs_of_a_document(
    layers: tuple[int, ...], one_window_at_a_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = longfocus.read_document(small_model(layers), byte_tokenizer(), TEXT)
    monkeypatch.setattr("longfocus.memory.store.SORTED_FROM", 20)
    clustered = small_model(layers, search="clustered")
    found = longfocus.read_document(clustered, byte_tokenizer(), TEXT)
    assert found.description.clusters
    for layer, part in found.layers.items():
        back = in_order(part)
        # so few pairs are all attended to
        torch.testing.assert_close(back.key, expected.layers[layer].key)
        torch.testing.assert_close(back.value, expected.layers[layer].value)
        assert not part.key.equal(back.key)
