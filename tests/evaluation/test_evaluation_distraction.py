"""`longfocus evaluate distraction`: exact shares, 1/d for who tells nothing apart, 1 for who tells all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import longfocus
from families import random_model
from longfocus.core.attention import Partial
from longfocus.errors import LongFocusError
from longfocus.evaluation.distraction import shares
from longfocus.evaluation.experiments import experiment
from longfocus.evaluation.experiments.distraction import DistractionSettings
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.subject import Subject
from longfocus.memory import Part
from longfocus.memory.dense import dense
from small import SPECIAL, byte_tokenizer, small_model

WINDOW, HIDDEN = 16, 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six documents, each of four letters that no other has."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(6):
        letters = [chr(ord("A") + 4 * number + i) for i in range(4)]
        (folder / f"{number}.txt").write_text("".join(rng.choice(letters, size=200)))
    return folder


def measured(subject: Subject, data: Path, **settings: Any) -> list[dict[str, Any]]:
    results, chosen = Results(), experiment("distraction")
    given = {"tokens": ("64",), "others": (1, 4), "windows": 2, "max_documents": 3, **settings}
    run(chosen, chosen.settings(data=(data,), **given), subject, results)
    return results.rows


def telling_apart(sharpness: float) -> Any:
    """A model whose one head looks at the letters that it reads, the more so the larger `sharpness` is."""
    vocabulary = 256 + len(SPECIAL)
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 1, "hidden_size": HIDDEN}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HIDDEN}
    settings = {**sizes, **heads, "intermediate_size": 8, "max_position_embeddings": 64}
    model = random_model("llama", settings, "sdpa")
    with torch.no_grad():
        # every letter is a direction of its own
        embeddings = model.get_input_embeddings().weight.zero_()
        for place in range(HIDDEN):
            (token,) = byte_tokenizer()(chr(ord("A") + place))["input_ids"]
            embeddings[token, place] = 1
        layer = model.model.layers[0]
        layer.input_layernorm.weight.fill_(1)
        for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            weight.copy_(sharpness * torch.eye(HIDDEN))
    focus = longfocus.FocusConfig(memory_layers=(0,), window=WINDOW, positions="none")
    return longfocus.attach(model, focus, verify=False)


@pytest.mark.parametrize("knows", [True, False])
def test_evaluation_of_who_tells_documents_apart_gives_1_and_of_who_does_not_chance(
    knows: bool, data: Path
) -> None:
    subject = Subject(telling_apart(3.0 if knows else 0.0), byte_tokenizer())
    rows = measured(subject, data)
    assert [row["others"] for row in rows] == [1, 4]
    for row in rows:
        assert row["chance"] == 1 / (1 + row["others"])
        assert row["positive_mass"] == pytest.approx(1 if knows else row["chance"], abs=1e-4)
        assert row["documents"] == 3
        assert row["windows"] == 6


def test_evaluation_tells_layers_and_heads(data: Path) -> None:
    subject = Subject(small_model((0, 2)), byte_tokenizer())
    (row,) = measured(subject, data, others=(3,))
    assert [own["layer"] for own in row["layers"]] == [0, 2]
    assert len(row["heads"]) == 12
    assert sum(own["positive_mass"] for own in row["heads"]) / 12 == pytest.approx(
        row["positive_mass"]
    )
    # 4 documents; keys and values of 4 float32 components in each of 2 KV heads and 2 layers
    assert row["memory_bytes"] == 4 * 64 * 2 * 2 * 2 * 4 * 4


def test_evaluation_shares_are_a_plain_softmax_over_all_documents(data: Path) -> None:
    model, texts = small_model((1,)), [(data / f"{i}.txt").read_text()[:50] for i in range(4)]
    subject, seen = Subject(model, byte_tokenizer()), []

    def noting(query: Tensor, parts: Sequence[Part], *, scale: float, **more: Any) -> Partial:
        seen.append((query, scale))
        return dense(query, parts, scale=scale)

    with subject.session() as session:
        documents = [subject.read(session, text) for text in texts]
        window = documents[0].token_ids[:WINDOW]
        (found,) = shares(subject, session, window).values()
        cache = longfocus.FocusCache(model, documents, searches={1: noting})
        with torch.no_grad():
            model(window[None], past_key_values=cache, last_context_length=WINDOW)
        ((query, scale),) = seen
        keys = torch.cat([document.layers[1].key for document in documents], 2)
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)
    weights = (query @ keys.mT * scale).softmax(-1)[0]
    expected = torch.stack([own.sum(-1) for own in weights.split(50, -1)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(0), torch.ones(6, WINDOW))


def test_evaluation_refuses_more_documents_than_there_are(data: Path) -> None:
    subject = Subject(small_model(), byte_tokenizer())
    with pytest.raises(LongFocusError, match="has no 99 pieces of 64 tokens"):
        measured(subject, data, others=(99,))
    for given, told in (({"data": ()}, "--data is missing"), ({"others": (0,)}, "at least 1")):
        with pytest.raises(LongFocusError, match=told):
            DistractionSettings(**{"data": (data,), **given})
