"""Where the model looked: the weights of the one softmax, and the characters that they belong to."""

from functools import cache
from typing import Any

import pytest
import torch
from small import KEPT, TEXT, WINDOW, byte_tokenizer, ids_of, session
from torch import Tensor

import longfocus
from families import SIZES, random_model
from longfocus import Session
from longfocus.hf.trace import Trace
from longfocus.inference.answer import Answer, Span
from longfocus.memory import Part

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
        return torch.cat([memory, local], 1).softmax(-1)[:, : len(told)].mean(0)


def asked(sources: list[Any], trace: int, *, tokens: int = 1, **settings: Any) -> Answer:
    asking = Session(one_layer(**settings), byte_tokenizer())
    for source in sources:
        asking.read(source)
    return asking.ask(QUESTION, max_new_tokens=tokens, trace=trace)


@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("trace", [1, 4, 500])
def test_weights_are_those_of_the_plain_softmax_heaviest_first(
    trace: int, top_k: int | None
) -> None:
    settings = {} if top_k is None else {"search": "exact", "top_k": top_k}
    # no token twice: equal keys would share the k places by chance
    told = torch.randperm(256)[:100] + 3
    answer = asked([told], trace, **settings)
    expected = shares(one_layer(**settings), told, ids_of(QUESTION), top_k)
    order = expected.argsort(descending=True)
    (looked,) = answer.looked
    assert len(looked) == min(trace, int(expected.gt(0).sum()))
    for span, place in zip(looked, order.tolist(), strict=False):
        assert span.start == place
        assert span.weight == pytest.approx(float(expected[place]), rel=1e-4)


@pytest.mark.parametrize("trace", [1, 500])
@pytest.mark.parametrize("top_k", [1, 5])
def test_weights_of_equal_keys_sum_to_less_than_one(trace: int, top_k: int) -> None:
    (looked,) = asked([TEXT], trace, search="exact", top_k=top_k).looked
    assert 0 < sum(span.weight for span in looked) < 1


def test_a_later_token_looks_with_its_own_query() -> None:
    answer = asked([TEXT], 3, tokens=5)
    assert len(answer.looked) == len(answer.token_ids) == 5
    for step, looked in enumerate(answer.looked):
        so_far = torch.cat([ids_of(QUESTION), torch.tensor(answer.token_ids[:step]).long()])
        expected = shares(one_layer(), ids_of(TEXT), so_far).sort(descending=True).values[:3]
        found = torch.tensor([span.weight for span in looked])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("layers", [(1,), (0, 1, 2)], ids=str)
def test_weights_of_a_token_sum_to_less_than_one_whatever_the_layers(
    layers: tuple[int, ...],
) -> None:
    asking = session(layers)
    asking.read(TEXT)
    for answer in asking.ask([QUESTION, "!"], max_new_tokens=7, trace=500):
        assert len(answer.looked) == 7
        for looked in answer.looked:
            assert 0 < sum(span.weight for span in looked) < 1


def test_a_question_of_several_windows_names_documents_only() -> None:
    asking = session((0, 1))
    asking.read(TEXT, "told")
    answer = asking.ask(TEXT[::-1], max_new_tokens=3, trace=500)
    assert {span.document for looked in answer.looked for span in looked} == {"told"}
    for looked in answer.looked:
        assert 0 < sum(span.weight for span in looked) < 1


def test_every_question_of_a_batch_looks_for_itself() -> None:
    asking = session(window=4 * WINDOW)
    asking.read(TEXT)
    questions = [QUESTION, "What about the keys of the owl?", "!"]
    for together, question in zip(
        asking.ask(questions, max_new_tokens=5, trace=4), questions, strict=True
    ):
        alone = asking.ask(question, max_new_tokens=5, trace=4)
        for one, other in zip(together.looked, alone.looked, strict=True):
            for span, same in zip(one, other, strict=True):
                assert span.weight == pytest.approx(same.weight, rel=1e-3)


def test_a_span_names_document_characters_and_line() -> None:
    answer = asked([TEXT, "second\ntext"], 500)
    told = torch.cat([ids_of(TEXT), ids_of("second\ntext")])
    expected = shares(one_layer(), told, ids_of(QUESTION))
    spans = {span for looked in answer.looked for span in looked}
    first = "The owl 🦉 saw nine keys. Ça va? Über 42 "
    assert {span.document for span in spans} == {first, "second text"}
    second = [span for span in spans if span.document == "second text"]
    for span in spans:
        text = "second\ntext" if span in second else TEXT
        assert text[span.start : span.end] == span.text
        assert span.line == 1 + text[: span.start].count("\n")
    weights = {span.start: span.weight for span in second}
    assert len(weights) == 11
    for place, weight in weights.items():
        assert weight == pytest.approx(float(expected[len(ids_of(TEXT)) + place]), rel=1e-4)


def test_a_document_of_bare_token_ids_is_named_by_place() -> None:
    asking = Session(one_layer())
    asking.read(ids_of(TEXT))
    (answer,) = asking.ask(ids_of(QUESTION), max_new_tokens=1, trace=3)
    expected = shares(one_layer(), ids_of(TEXT), ids_of(QUESTION)).argsort(descending=True)[:3]
    assert [span.start for span in answer.looked[0]] == expected.tolist()
    assert {span.text for span in answer.looked[0]} == {""}


def test_sources_join_equal_places_and_average_over_tokens() -> None:
    def span(start: int, weight: float, document: str = "a") -> Span:
        return Span(document, start, start + 1, 1, "x", weight)

    looked = ((span(3, 0.4), span(5, 0.2)), (span(5, 0.5), span(3, 0.1, "b")), (), ())
    sources = Answer("", (1, 2, 3, 4), looked).sources
    assert [(s.document, s.start) for s in sources] == [("a", 5), ("a", 3), ("b", 3)]
    assert [s.weight for s in sources] == pytest.approx([0.175, 0.1, 0.025])
    assert Answer("", ()).sources == ()


def test_without_a_trace_nothing_is_looked_up() -> None:
    assert asked([TEXT], 0).looked == ()


def test_padding_in_the_memory_of_a_conversation_is_never_named() -> None:
    trace, query = Trace(top=4), torch.randn(1, 2, 1, 8)
    key = torch.randn(1, 2, 6, 8)
    valid = torch.tensor([[False, True, True, False, False, True]])
    part = Part(key * valid[:, None, :, None], key, valid, (0,))
    trace.begin(0, rows=1)
    trace.look(0, query, [part], part.attend(query, scale=0.5).lse, scale=0.5)
    (found,) = trace.rows[0]
    assert {looked.position for looked in found} == {1, 2, 5}
    assert sum(looked.weight for looked in found) == pytest.approx(1)
