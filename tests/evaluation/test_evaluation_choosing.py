"""Choosing a label: its score is that of decoding it, and no other label changes it."""

from typing import Any

import pytest
import torch

from longfocus.evaluation.choosing import likeliest, likelihoods
from longfocus.evaluation.subject import Subject
from small import byte_tokenizer, small_model

SHOWN = "Text: one\nLabel: a\n\n" * 3
LONG, SHORT = "Text: what did the owl see in the night?\nLabel:", "Label:"
LABELS = [" a", " b", " cat", " of owls and of keys\n", " dog", " c"]


@torch.no_grad()
def step_by_step(session: Any, question: str, label: str) -> float:
    """The log-likelihood of a label, token by token."""
    cache, total = session.cache(), 0.0
    given = byte_tokenizer()(question)["input_ids"]
    for token in byte_tokenizer()(label)["input_ids"]:
        logits = session.model(torch.tensor([given]), past_key_values=cache).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        given = [token]
    return total


@pytest.mark.parametrize(
    ("question", "settings"),
    [
        (LONG, {}),
        (SHORT, {}),
        # the question fits the window, with most labels
        (LONG, {"window": 64}),
        (LONG, {"search": "exact", "top_k": 2}),
        (LONG, {"split": "longllama"}),
        (LONG, {"positions": "true"}),
    ],
)
def test_evaluation_gives_a_label_the_score_of_decoding_it_whatever_the_others_are(
    question: str, settings: dict[str, Any]
) -> None:
    subject, tokenizer = Subject(small_model(**settings), byte_tokenizer()), byte_tokenizer()
    with subject.session() as session:
        subject.read(session, SHOWN)
        expected = [step_by_step(session, question, label) for label in LABELS]
        for order in ([0, 1, 2, 3, 4, 5], [4, 0]):
            chosen = [LABELS[number] for number in order]
            found = likelihoods(session, tokenizer, question, chosen)
            assert found == pytest.approx([expected[number] for number in order], abs=2e-5)


def test_evaluation_chooses_the_label_of_the_highest_score() -> None:
    subject, tokenizer = Subject(small_model(), byte_tokenizer()), byte_tokenizer()
    with subject.session() as session:
        subject.read(session, SHOWN)
        scores = likelihoods(session, tokenizer, LONG, LABELS)
        for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1], [3]):
            chosen = likeliest(session, tokenizer, LONG, [LABELS[number] for number in order])
            assert order[chosen] == max(order, key=scores.__getitem__)


def test_evaluation_reads_the_question_once_and_makes_logits_for_labels_alone() -> None:
    subject, calls = Subject(small_model(window=64), byte_tokenizer()), []
    labels = [f" {letter}\n\n" for letter in "abcdefgh"]

    def note(module: Any, given: Any, named: dict[str, Any], output: Any) -> None:
        calls.append((tuple(named["input_ids"].shape), tuple(output.logits.shape[:2])))

    handle = subject.model.register_forward_hook(note, with_kwargs=True)
    with subject.session() as session:
        likelihoods(session, byte_tokenizer(), "Text: two\nLabel:", labels)
    handle.remove()
    # three rows of 16 + 4 tokens find room in a window of 64
    assert calls == [((1, 16), (1, 1)), ((3, 3), (3, 3)), ((3, 3), (3, 3)), ((2, 3), (2, 3))]
