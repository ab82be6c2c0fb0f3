"""Where the model looked: the weights of the one softmax, and the characters that they belong to."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import longfocus
from families import SIZES, random_model
from long import mostly_long
from longfocus import LongFocusError, Session
from longfocus.hf.trace import NEIGHBOURS, Trace
from longfocus.inference import answer as answers
from longfocus.inference.answer import Answer
from longfocus.memory import Part
from small import KEPT, TEXT, WINDOW, byte_tokenizer, ids_of, session

QUESTION = "Who has it?"


@cache
def one_layer(**settings: Any) -> Any:
    """A model of one layer without positions, whose attention weights are a line of plain torch."""
    sizes = {"vocab_size": 259, "num_hidden_layers": 1, "hidden_size": 24, "head_dim": 8}
    model = random_model("llama", {**SIZES, **sizes}, "sdpa")
    model.generation_config.eos_token_id = None
    config = {"window": WINDOW, "last_context_length": KEPT, "positions": "none", **settings}
    return longfocus.attach(model, longfocus.FocusConfig(memory_layers=(0,), **config))


def shares(model: Any, told: Tensor, asked: Tensor, top_k: int | None = None) -> Tensor:
    """Share of the last token's attention for every token that was told, averaged over heads."""
    return shares_of_heads(model, told, asked, top_k).mean(0)


def shares_of_heads(model: Any, told: Tensor, asked: Tensor, top_k: int | None = None) -> Tensor:
    """The same for every head."""
    layer = model.model.layers[0]
    attention = layer.self_attn

    def project(weights: torch.nn.Linear, ids: Tensor) -> Tensor:
        hidden = layer.input_layernorm(model.model.embed_tokens(ids))
        return weights(hidden).unflatten(-1, (-1, 8)).transpose(0, 1)

    with torch.no_grad():
        query = project(attention.q_proj, asked[-1:])
        groups = len(query) // SIZES["num_key_value_heads"]
        key, own = (
            project(attention.k_proj, ids).repeat_interleave(groups, 0) for ids in (told, asked)
        )
        memory, local = ((query @ keys.mT)[:, 0] * 8**-0.5 for keys in (key, own))
        if top_k is not None:
            least = memory.topk(top_k, dim=-1).values[:, -1:]
            memory = memory.masked_fill(memory < least, -torch.inf)
        return torch.cat([memory, local], 1).softmax(-1)[:, : len(told)]


@contextmanager
def naming(top: int) -> Iterator[None]:
    """So many entries per token and layer are named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "TOP", top)
        yield


def asked(sources: list[Any], *, tokens: int = 1, **settings: Any) -> Answer:
    asking = Session(one_layer(**settings), byte_tokenizer())
    for source in sources:
        asking.read(source)
    return asking.ask(QUESTION, max_new_tokens=tokens)


@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("top", [1, 4, 500])
def test_weights_are_those_of_the_plain_softmax_heaviest_first(top: int, top_k: int | None) -> None:
    settings = {} if top_k is None else {"search": "exact", "top_k": top_k}
    # no token twice: equal keys would share the k places by chance
    told = torch.randperm(256)[:100] + 3
    with naming(top):
        (looked,) = asked([told], **settings).looked
    expected = shares(one_layer(**settings), told, ids_of(QUESTION), top_k)
    order = expected.argsort(descending=True)
    assert len(looked) == min(top, int(expected.gt(0).sum()))
    for span, place in zip(looked, order.tolist(), strict=False):
        assert span.start == place
        assert span.weight == pytest.approx(float(expected[place]), rel=1e-4)


@pytest.mark.parametrize("top_k", [None, 5])
def test_heat_holds_the_weight_of_every_token(top_k: int | None) -> None:
    settings = {} if top_k is None else {"search": "exact", "top_k": top_k}
    told = [torch.arange(3, 103), torch.arange(103, 203)]
    answer = asked(told, **settings)
    expected = shares(one_layer(**settings), torch.cat(told), ids_of(QUESTION), top_k)
    torch.testing.assert_close(torch.cat(answer.heat), expected, atol=1e-6, rtol=1e-4)
    assert [document.tokens for document in answer.documents] == [100, 100]


def test_heat_is_the_same_however_little_is_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = asked([TEXT, TEXT[::-1]], tokens=6)
    again = Answer(answer.text, answer.token_ids, answer.asked)
    expected = answer.heat
    monkeypatch.setattr("longfocus.hf.trace._HELD_ELEMENTS", 300)
    monkeypatch.setattr("longfocus.hf.trace._BLOCK_ELEMENTS", 70)
    for one, other in zip(again.heat, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert [len(looked) for looked in again.looked] == [len(looked) for looked in answer.looked]


def test_scores_compare_an_entry_with_what_was_retrieved_and_with_its_neighbours() -> None:
    told = torch.randperm(256)[:100] + 3
    (looked,) = asked([told]).looked
    heads = shares_of_heads(one_layer(), told, ids_of(QUESTION))
    for span in looked:
        own = heads[:, span.start]
        assert span.knn_score == pytest.approx(float((own / heads.sum(1)).mean()), rel=1e-4)
        first = max(0, min(span.start - NEIGHBOURS // 2, 100 - NEIGHBOURS))
        around = heads[:, first : first + NEIGHBOURS].sum(1)
        assert span.focus_score == pytest.approx(float((own / around).mean()), rel=1e-4)


@pytest.mark.parametrize("top_k", [1, 5])
def test_the_knn_scores_of_all_that_was_retrieved_sum_to_one(top_k: int) -> None:
    told = torch.randperm(256)[:100] + 3
    with naming(500):
        (looked,) = asked([told], search="exact", top_k=top_k).looked
    assert sum(span.knn_score for span in looked) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("top_k", [1, 5])
def test_weights_of_equal_keys_sum_to_less_than_one(top_k: int) -> None:
    with naming(500):
        (looked,) = asked([TEXT], search="exact", top_k=top_k).looked
    assert 0 < sum(span.weight for span in looked) < 1


def test_a_later_token_looks_with_its_own_query() -> None:
    answer = asked([TEXT], tokens=5)
    assert len(answer.looked) == len(answer.token_ids) == 5
    for step, looked in enumerate(answer.looked):
        so_far = torch.cat([ids_of(QUESTION), torch.tensor(answer.token_ids[:step]).long()])
        expected = shares(one_layer(), ids_of(TEXT), so_far).sort(descending=True).values[:8]
        found = torch.tensor([span.weight for span in looked])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("split", ["when_needed", "longllama"])
@pytest.mark.parametrize("layers", mostly_long([(1,), (0, 1, 2)], (0, 1, 2)), ids=str)
def test_looking_again_sees_what_the_model_saw_token_by_token(
    layers: tuple[int, ...], split: str
) -> None:
    asking = session(layers, split=split)
    asking.read(TEXT, "told")
    # the prompt is cut, and the answer leaves its window
    answer = asking.ask(TEXT[::-1], max_new_tokens=2 * WINDOW)
    cache = longfocus.FocusCache(asking.model, asking.documents)
    trace, ids = Trace(8), ids_of(TEXT[::-1])[None]
    with torch.no_grad():
        for token in (*answer.token_ids[:-1], None):
            asking.model(ids, past_key_values=cache, focus_trace=trace, logits_to_keep=1)
            ids = torch.tensor([[token or 0]])
    assert len(trace.queries) == len(answer.looked) == 2 * WINDOW
    heat = trace.heat[0] / len(layers) / len(answer.token_ids)
    torch.testing.assert_close(answer.heat[0], heat, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("layers", mostly_long([(1,), (0, 1, 2)], (0, 1, 2)), ids=str)
def test_weights_of_a_token_sum_to_less_than_one_whatever_the_layers(
    layers: tuple[int, ...],
) -> None:
    asking = session(layers)
    asking.read(TEXT)
    with naming(500):
        for answer in asking.ask([QUESTION, "!"], max_new_tokens=7):
            assert len(answer.looked) == 7
            for looked in answer.looked:
                assert 0 < sum(span.weight for span in looked) < 1


def test_a_question_of_several_windows_names_documents_only() -> None:
    asking = session((0, 1))
    asking.read(TEXT, "told")
    answer = asking.ask(TEXT[::-1], max_new_tokens=3)
    assert {span.document for looked in answer.looked for span in looked} == {"told"}
    assert {span.document for span in answer.sources} == {"told"}


def test_every_question_of_a_batch_looks_for_itself() -> None:
    asking = session(window=4 * WINDOW)
    asking.read(TEXT)
    questions = [QUESTION, "What about the keys of the owl?", "!"]
    for together, question in zip(asking.ask(questions, max_new_tokens=5), questions, strict=True):
        assert together.looked == asking.ask(question, max_new_tokens=5).looked


def test_a_span_names_document_characters_and_line() -> None:
    answer = asked([TEXT, "second\ntext"])
    with naming(500):
        (looked,) = answer.looked
    first = "The owl 🦉 saw nine keys. Ça va? Über 42 "
    assert {span.document for span in looked} == {first, "second text"}
    second = [span for span in looked if span.document == "second text"]
    for span in looked:
        text = "second\ntext" if span in second else TEXT
        assert text[span.start : span.end] == span.text
        assert span.line == 1 + text[: span.start].count("\n")
    weights = {span.start: span.weight for span in second}
    told = torch.cat([ids_of(TEXT), ids_of("second\ntext")])
    expected = shares(one_layer(), told, ids_of(QUESTION))
    assert len(weights) == 11
    for place, weight in weights.items():
        assert weight == pytest.approx(float(expected[len(ids_of(TEXT)) + place]), rel=1e-4)


def test_a_document_of_bare_token_ids_is_named_by_place() -> None:
    asking = Session(one_layer())
    told = torch.randperm(256)[:100] + 3
    asking.read(told)
    (answer,) = asking.ask(ids_of(QUESTION)[None], max_new_tokens=1)
    expected = shares(one_layer(), told, ids_of(QUESTION)).argsort(descending=True)[:8]
    assert [span.start for span in answer.looked[0]] == expected.tolist()
    assert {span.text for span in answer.looked[0]} == {""}


def test_sources_join_neighbours_and_count_all_attention_between_them() -> None:
    # one token per character
    answer = asked(["The owl saw nine keys.\n" * 40, "And then\nthere were none."], tokens=5)
    sources = answer.sources
    assert sources
    weights = [span.weight for span in sources]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] >= answers.LEAST_SHARE * weights[0]
    for span in answer.sources:
        place = [document.name for document in answer.documents].index(span.document)
        document, heat = answer.documents[place], answer.heat[place]
        assert document.text is not None
        assert document.text[span.start : span.end] == span.text
        starts = document.offsets[:, 0]
        inside = (starts >= span.start) & (starts < span.end)
        assert span.weight == pytest.approx(float(heat[inside].sum()), rel=1e-4)
    for span in sources:
        for other in sources:
            if other is not span and other.document == span.document:
                assert other.end <= span.start or span.end <= other.start


def test_runs_of_neighbours_end_where_the_next_is_too_far() -> None:
    gap = answers.GAP
    assert answers._runs([1, 2, 2 + gap, 3 + 2 * gap, 90]) == [
        (1, 2 + gap),
        (3 + 2 * gap, 3 + 2 * gap),
        (90, 90),
    ]
    assert answers._runs([]) == []


def test_without_documents_there_are_no_sources() -> None:
    answer = asked([])
    assert answer.sources == answer.heat == ()
    assert answer.looked == ((),)
    assert Answer("", ()).sources == Answer("", ()).looked == Answer("", ()).heat == ()


def test_a_file_of_a_folder_is_named_in_its_sources(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(f"the text of {name}\n" * 5)
    answer = asked([tmp_path], tokens=4)
    assert answer.sources
    text = answer.documents[0].text
    assert text is not None
    for span in answer.sources:
        inside = {part.name: (part.start, part.end) for part in answer.documents[0].parts}
        if span.part is not None:
            assert inside[span.part][0] <= span.start < inside[span.part][1]
    assert set(inside) == {f"{tmp_path.name}/{n}.txt" for n in ("one", "two")}


def test_a_batch_is_traced_row_by_row() -> None:
    asking = session()
    asking.read(TEXT)
    cache = longfocus.FocusCache(asking.model, asking.documents)
    with pytest.raises(LongFocusError, match="batch of 2 rows"):
        asking.model(torch.ones(2, 3).long(), past_key_values=cache, focus_trace=Trace())


def test_padding_in_the_memory_of_a_conversation_is_never_named() -> None:
    trace, query = Trace(top=4), torch.randn(1, 2, 1, 8)
    key = torch.randn(1, 2, 6, 8)
    valid = torch.tensor([[False, True, True, False, False, True]])
    part = Part(key * valid[:, None, :, None], key, valid, (0,))
    trace.begin(0, rows=1, queries=1)
    trace.look(0, query, [part], part.attend(query, scale=0.5).lse, scale=0.5)
    (found,) = trace.queries
    assert {looked.position for looked in found} == {1, 2, 5}
    assert sum(looked.weight for looked in found) == pytest.approx(1)
