"""FAISS search in a model: long texts and generation give what exact search gives."""

from typing import Any

import pytest
import torch

import longfocus
from longfocus.memory import faiss_search
from longfocus.memory.faiss_search import Faiss
from small import TEXT, byte_tokenizer, ids_of, small_model

EXACT: dict[str, Any] = {"search": "exact", "top_k": 5}
FAISS: dict[str, Any] = {"search": "faiss", "top_k": 5}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes for parts that a test can afford."""
    monkeypatch.setattr(faiss_search, "SHORTEST", 20)


def indexes(cache: longfocus.FocusCache) -> int:
    search = cache.searches[1]
    assert isinstance(search, Faiss)
    return len(search._kept)


def test_faiss_reads_and_generates_as_exact_search_does() -> None:
    model, ids = small_model(), ids_of(TEXT)[None].repeat(2, 1)
    found = []
    for settings in (EXACT, FAISS):
        cache = longfocus.FocusCache(model, **settings)
        torch.manual_seed(0)
        output = model.generate(
            ids,
            past_key_values=cache,
            max_new_tokens=40,
            num_beams=3,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        found.append((output.sequences, torch.stack(output.logits)))
        if settings is FAISS:
            assert indexes(cache)
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_faiss_finds_its_way_in_documents_and_forks() -> None:
    model = small_model()
    documents = [
        longfocus.read_document(model, byte_tokenizer(), TEXT + str(number)) for number in range(3)
    ]
    found = []
    for settings in (EXACT, FAISS):
        cache = longfocus.FocusCache(model, documents=documents, **settings)
        with torch.no_grad():
            first = model(ids_of(TEXT)[None], past_key_values=cache).logits
            fork = cache.fork()
            both = [
                model(ids_of(other)[None], past_key_values=own).logits
                for own, other in ((cache, "abc" * 20), (fork, "Über" * 15))
            ]
        found.append([first, *both])
        if settings is FAISS:
            assert indexes(cache) >= 3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_cache_takes_the_index_and_the_level_of_faiss() -> None:
    cache = longfocus.FocusCache(small_model(), search="faiss", index="HNSW8", retain=0.9)
    search = cache.searches[1]
    assert isinstance(search, Faiss)
    assert (search.index, search.audit.retain) == ("HNSW8", 0.9)


def test_certify_in_a_cache_reaches_its_searches() -> None:
    for certify in (False, True):
        cache = longfocus.FocusCache(small_model(), search="clustered", certify=certify)
        assert (cache.searches[1].certificate is not None) == certify


def test_faiss_settings_survive_a_saved_config() -> None:
    config = longfocus.FocusConfig(
        memory_layers=(1,), window=8, search="faiss", index="IVF64,Flat", certify=True
    )
    assert longfocus.FocusConfig.from_dict(config.to_dict()) == config
