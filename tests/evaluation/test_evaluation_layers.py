"""`longfocus evaluate layers`: what a layer would do as the only memory layer, exactly."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import longfocus
from families import FAMILIES, SIZES, VOCABULARY, Family, longrope, random_model
from longfocus.errors import LongFocusError
from longfocus.evaluation import layers, layers_attached
from longfocus.evaluation.distraction import shares
from longfocus.evaluation.experiments import experiment
from longfocus.evaluation.experiments.layers import LayersSettings
from longfocus.evaluation.held_out import held_out
from longfocus.evaluation.layers_choice import preference
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.evaluation.subject import Subject
from longfocus.hf.trace import Trace
from longfocus.memory.dense import dense
from small import SPECIAL, byte_tokenizer, small_model

WINDOW, TOKENS, DOCUMENTS = 16, 40, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of letters, each of which has three that it prefers."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    letters = [chr(ord("A") + i) for i in range(26)]
    for number in range(DOCUMENTS):
        often = letters[6 * number : 6 * number + 3]
        text = rng.choice(letters + often * 9, size=150 + number)
        (folder / f"{number}.txt").write_text("".join(text))
    return folder


def settings_of(data: Path, **given: Any) -> LayersSettings:
    tiny = {"tokens": (str(TOKENS),), "others": (1, 3), "windows": 2, "max_documents": 2}
    return LayersSettings(**{"data": (data,), "window": WINDOW, **tiny, **given})


def of_bytes(family: Family) -> PreTrainedModel:
    """A model of a family whose words are bytes."""
    settings = {**SIZES, **family.settings, "vocab_size": 256 + len(SPECIAL)}
    if settings.pop("rope_scaling", None) == "longrope":
        settings |= longrope(head_dim=8)
    return random_model(family.model_type, settings, family.attention[0])


def expected(model: Any, settings: LayersSettings, window: layers.Window) -> dict[str, Tensor]:
    """What `evaluate distraction` finds for a model with one memory layer, and its share of the memory, by head."""
    subject = Subject(model, byte_tokenizer())
    data = held_out(settings.data, subject.tokenizer)
    pieces = layers.pool(data, TOKENS, max(settings.others), 1)
    seen = layers.seen([window], pieces, settings.others, 1)
    found: dict[str, Tensor] = {}
    for level, others in enumerate(settings.others):
        ids = [pieces[int(own)].ids for own in seen[:, level, 0].nonzero()[:, 0]]
        assert len(ids) == others
        with subject.session() as session:
            for piece in [window.document.ids[window.place - TOKENS : window.place], *ids]:
                subject.read(session, piece)
            asked = window.document.ids[window.place : window.place + WINDOW]
            (mass,) = shares(subject, session, asked).values()
            found[f"{others} positive_mass"] = mass[0].mean(-1)
            found[f"{others} memory_share"] = memory_share(model, session.documents, asked)
    return found


def memory_share(model: Any, documents: Sequence[Any], asked: Tensor) -> Tensor:
    """By the total that a trace is told of."""
    (layer,), sums, totals = model.focus.config.memory_layers, [], []

    def noting(query: Tensor, parts: Any, **scoring: Any) -> Any:
        found = dense(query, parts, **scoring)
        sums.append(found.lse)
        return found

    class Totals(Trace):
        def look(
            self, layer: int, query: Tensor, parts: Any, total: Tensor, **scoring: Any
        ) -> None:
            totals.append(total)

    with torch.no_grad():
        model(
            asked[None],
            past_key_values=longfocus.FocusCache(model, documents, searches={layer: noting}),
            focus_trace=Totals(last=None),
            last_context_length=len(asked),
        )
    return (sums[0] - totals[0]).exp()[0].mean(-1)


# grouped heads; scaled positions; layers without positions; a bound of scores, sliding windows; attention sinks
FAST = {("llama_gqa", "window_start"), ("phi3_longrope", "none"), ("smollm3", "none")}
CHOSEN = ("llama_gqa", "qwen3", "qwen2_sliding", "phi3_longrope", "gemma2", "smollm3", "gpt_oss")
CASES = [
    pytest.param(
        family,
        positions,
        id=f"{family.name}-{positions}",
        marks=[] if (family.name, positions) in FAST else pytest.mark.long,
    )
    for family in FAMILIES
    if family.name in CHOSEN
    for positions in ("window_start", "none")
]


@pytest.mark.parametrize(("family", "positions"), CASES)
def test_evaluation_of_layers_is_that_of_each_as_the_only_memory_layer(
    family: Family, positions: str, data: Path
) -> None:
    settings = settings_of(data, positions=positions, max_documents=1, windows=1)
    stock = of_bytes(family)
    found = list(layers.measured(Subject(stock, byte_tokenizer()), settings, TOKENS, 1))
    chosen = held_out(settings.data, byte_tokenizer()).chosen(TOKENS + WINDOW, 1, 1)
    window = layers.Window(chosen[0], found[0]["place"])
    for layer in range(4):
        focus = {"memory_layers": (layer,), "window": WINDOW, "positions": positions}
        model = longfocus.attach(of_bytes(family), longfocus.FocusConfig(**focus), verify=False)
        for name, value in expected(model, settings, window).items():
            others, entry = name.split()
            (own,) = [
                record
                for record in found
                if (record["layer"], record["others"]) == (layer, int(others))
            ]
            torch.testing.assert_close(torch.tensor(own[entry]), value, atol=2e-5, rtol=2e-4)


def test_evaluation_of_layers_has_no_prefix_of_windows_in_memory(data: Path) -> None:
    subject = Subject(small_model((2,)), byte_tokenizer(bos=True), window_prefix="bos")
    settings = settings_of(data, window=None, layers=(2,), others=(3,), max_documents=1, windows=1)
    (found,) = layers.measured(subject, settings, TOKENS, 1)
    texts = held_out(settings.data, subject.tokenizer)
    (document,) = texts.chosen(TOKENS + WINDOW - 1, 1, 1)
    place = found["place"]
    with subject.session() as session:
        subject.read(session, document.ids[place - TOKENS : place])
        for piece in layers.pool(texts, TOKENS, 3, 1):
            if piece.document != document.name:
                subject.read(session, piece.ids)
        asked = document.ids[place : place + WINDOW - 1]
        (mass,) = shares(subject, session, asked).values()
    # the query of the prefix is not one of the window
    expected = mass[0, :, 1:].mean(-1)
    torch.testing.assert_close(torch.tensor(found["positive_mass"]), expected)


def logits_with_memory(model: Any) -> Tensor:
    ids = torch.arange(3 * WINDOW)[None] % VOCABULARY
    with torch.no_grad():
        return model(ids, past_key_values=longfocus.FocusCache(model)).logits


@pytest.mark.parametrize("merge", ["joint", "gate"])
def test_evaluation_of_layers_leaves_an_attached_model_as_it_was(merge: str, data: Path) -> None:
    stock = of_bytes(FAMILIES[0])
    config = longfocus.FocusConfig(memory_layers=(1,), window=WINDOW, merge=merge, positions="none")
    model = longfocus.attach(stock, config)
    if merge == "gate":
        model.model.layers[1].self_attn.focus_gate.data.uniform_(-1, 1)
    before, weights = logits_with_memory(model), dict(model.named_parameters())
    list(layers.measured(Subject(model, byte_tokenizer()), settings_of(data), TOKENS, 1))
    assert model.focus.config == config
    assert logits_with_memory(model).equal(before)
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 1


def test_evaluation_of_layers_keeps_windows_without_positions_that_a_model_was_trained_with(
    data: Path,
) -> None:
    def attached() -> Any:
        focus = {"memory_layers": (1,), "window": WINDOW, "positions": "none"}
        return longfocus.attach(of_bytes(FAMILIES[0]), longfocus.FocusConfig(**focus))

    settings = settings_of(data, layers=(1, 3), max_documents=1, windows=1)
    found = list(layers.measured(Subject(attached(), byte_tokenizer()), settings, TOKENS, 1))
    chosen = held_out(settings.data, byte_tokenizer()).chosen(TOKENS + WINDOW, 1, 1)
    window = layers.Window(chosen[0], found[0]["place"])
    value = expected(attached(), settings, window)["3 positive_mass"]
    (own,) = [o for o in found if (o["layer"], o["others"]) == (1, 3)]
    torch.testing.assert_close(torch.tensor(own["positive_mass"]), value)
    # the hidden states of the layers behind are those of its own window, too
    inside = dict(itertools.islice(queries_of(attached(), window), 1))
    with layers_attached.candidates(attached(), (3,), WINDOW, "window_start") as candidates:
        ids = window.document.ids[window.place : window.place + WINDOW]
        asked = candidates.queries(ids, torch.arange(WINDOW))[3].query
    torch.testing.assert_close(asked, inside[3])


def queries_of(model: Any, window: layers.Window) -> Any:
    """Rotated queries of layer 3, which has no memory, by its own projection."""
    seen: list[Tensor] = []
    module = model.model.layers[3].self_attn

    def note(module: Any, args: Any, kwargs: Any) -> None:
        query = module.q_proj(kwargs["hidden_states"]).unflatten(-1, (-1, module.head_dim))
        key = query.transpose(1, 2)
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
        seen.append(rotate(key, key, *kwargs["position_embeddings"])[0])

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    ids = window.document.ids[window.place : window.place + WINDOW]
    with torch.no_grad():
        model(ids[None], use_cache=False)
    handle.remove()
    yield 3, seen[0]


def test_evaluation_of_layers_in_blocks_and_side_by_side_is_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masses() -> Tensor:
        subject = Subject(small_model(), byte_tokenizer(bos=True), window_prefix="bos")
        subject.begin({})
        found = list(layers.measured(subject, settings_of(data, window=None), TOKENS, 1))
        assert subject._read == subject.expected
        return torch.tensor([own["positive_mass"] for own in found])

    whole = masses()
    assert len(whole) == 4 * 3 * 2
    monkeypatch.setattr(layers, "READ_TOKENS", 1)
    monkeypatch.setattr(layers_attached, "SCORES", 1)
    torch.testing.assert_close(masses(), whole)


@pytest.mark.parametrize("number", [1, 5])
def test_evaluation_of_layers_draws_other_documents_that_hold_each_other(
    number: int, data: Path
) -> None:
    texts = held_out((data,), byte_tokenizer())
    pieces = layers.pool(texts, 25, number, 1)
    windows = [
        layers.Window(document, place) for document in texts.chosen(25, 4, 1) for place in (25, 50)
    ]
    seen = layers.seen(windows, pieces, (1, number), 1)
    for place, window in enumerate(windows):
        few, many = seen[:, 0, place], seen[:, 1, place]
        assert few.sum() == 1
        assert many.sum() == number
        assert not (few & ~many).any()
        names = [pieces[int(own)].document for own in many.nonzero()[:, 0]]
        assert window.document.name not in names
        # a second piece of a document only where all have one
        assert len(set(names)) == min(number, DOCUMENTS - 1)
    contents = {(piece.document, piece.turn, *piece.ids.tolist()) for piece in pieces}
    assert len(contents) == len(pieces)
    with pytest.raises(LongFocusError, match="has no 99 pieces of 25 tokens"):
        layers.pool(texts, 25, 99, 1)


def test_evaluation_row_has_layers_and_heads(data: Path) -> None:
    results, chosen = Results(), experiment("layers")
    run(chosen, settings_of(data), Subject(small_model(), byte_tokenizer()), results)
    (row,) = results.rows
    assert (row["others"], row["chance"], row["model_layers"]) == (3, 1 / 4, 3)
    assert [(own["layer"], own["others"]) for own in row["layers"]] == [
        (layer, others) for layer in range(3) for others in (1, 3)
    ]
    assert len(row["heads"]) == 3 * 2 * 6
    for own in row["layers"]:
        of_heads = [
            head["positive_mass"]
            for head in row["heads"]
            if (head["layer"], head["others"]) == (own["layer"], own["others"])
        ]
        assert own["positive_mass"] == pytest.approx(np.mean(of_heads))
        low, high = own["positive_mass_interval"]
        assert low <= own["positive_mass"] <= high
        clear = [preference(mass, own["others"]) > 2 for mass in of_heads]
        assert own["clear_heads"] == np.mean(clear)
    largest = [own["positive_mass"] for own in row["layers"] if own["others"] == 3]
    assert row["positive_mass"] == pytest.approx(np.mean(largest))
    # 16 queries of 4 float32 components in 6 heads of 3 layers, in 2 windows of 2 documents
    assert row["memory_bytes"] == 16 * 4 * 4 * 6 * 3 * 4
