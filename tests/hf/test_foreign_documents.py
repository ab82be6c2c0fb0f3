"""A document that another model or tokenizer has read is refused with what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attached import WINDOW, attached, text
from transformers import PreTrainedModel

import longfocus
from families import Family, family
from longfocus.hf import documents
from longfocus.hf.documents import check_tokenizer
from longfocus.hf.fingerprint import model_fingerprint, tokenizer_fingerprint

ENTRY = family("mistral")
"""Its last layer has no memory."""


def changed() -> PreTrainedModel:
    model = attached(ENTRY)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    return model


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "architecture": (
        lambda: attached(Family("q", "qwen2", {}, ENTRY.memory_layers)),
        "a model of another architecture, mistral, not qwen2",
    ),
    "type": (
        lambda: attached(ENTRY, dtype=torch.bfloat16),
        "the model in float32; here it is loaded in bfloat16",
    ),
    "settings": (
        lambda: attached(
            Family("e", "mistral", {**ENTRY.settings, "rms_norm_eps": 1e-3}, ENTRY.memory_layers)
        ),
        "with other settings (config.json)",
    ),
    "weights": (changed, "with other weights, such as before more training"),
    "layers": (
        lambda: attached(Family("l", ENTRY.model_type, ENTRY.settings, (1, 2))),
        "with memory layers [0, 2] and positions 'window_start'; this model has [1, 2]",
    ),
    "positions": (lambda: attached(ENTRY, positions="none"), "and 'none'"),
    "stream": (lambda: attached(ENTRY, positions="true"), "Use positions='window_start' or"),
}


def read(model: PreTrainedModel) -> longfocus.DocumentMemory:
    return longfocus.read_document(model, None, text(40)[0][0])


@pytest.mark.parametrize("what", REFUSED)
def test_a_document_of_another_model_is_refused_with_what_to_do(what: str, tmp_path: Path) -> None:
    make, told = REFUSED[what]
    read(attached(ENTRY)).save(tmp_path / "owl")
    document, model = longfocus.DocumentMemory.load(tmp_path / "owl"), make()
    for use in (
        lambda: longfocus.FocusCache(model, [document]),
        lambda: longfocus.Session(model, documents=[document]),
    ):
        with pytest.raises(longfocus.LongFocusError) as raised:
            use()
        assert f"Document {tmp_path / 'owl'} was read" in str(raised.value)
        assert told in str(raised.value)
        if what != "stream":
            assert "Load the model that read it, or read the text again" in str(raised.value)


def test_a_model_with_other_upper_layers_uses_the_document() -> None:
    reader, user = attached(ENTRY), attached(ENTRY)
    with torch.no_grad():
        for weight in (
            *user.model.layers[3].parameters(),
            *user.model.norm.parameters(),
            user.lm_head.weight,
        ):
            weight += torch.randn_like(weight)
    found, expected = (
        user(text(9)[0], past_key_values=longfocus.FocusCache(user, [read(model)])).logits
        for model in (reader, user)
    )
    assert found.equal(expected)


def test_the_weights_are_looked_at_once_for_any_number_of_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = attached(ENTRY)
    document, calls = read(model), []
    monkeypatch.setattr(
        documents, "model_fingerprint", lambda model: calls.append(1) or model_fingerprint(model)
    )
    longfocus.FocusCache(model, [document] * 50)
    assert len(calls) == 1


def test_a_document_that_does_not_say_what_read_it_is_taken_by_its_shape() -> None:
    model = attached(ENTRY)
    given = read(model)
    silent = longfocus.DocumentMemory.of(
        name="silent",
        layers=given.layers,
        token_ids=given.token_ids,
        read_with=type(given.description.read_with)("window_start", WINDOW),
    )
    longfocus.FocusCache(changed(), [silent])
    heads = attached(Family("h", "llama", {"num_key_value_heads": 3}, ENTRY.memory_layers))
    with pytest.raises(longfocus.LongFocusError, match="2 KV heads of size 8, this one 3 of 8"):
        longfocus.FocusCache(heads, [silent])


def test_another_tokenizer_is_refused_with_what_to_do() -> None:
    model, tokenizer = longfocus.from_pretrained("code"), longfocus.tokenizer("code")
    document = longfocus.read_document(model, tokenizer, "def owl(): pass")
    own = tokenizer_fingerprint(tokenizer)
    check_tokenizer(document, own)
    check_tokenizer(document, None)
    check_tokenizer(longfocus.read_document(model, None, document.token_ids), own)
    tokenizer.add_tokens(["owl"])
    assert tokenizer_fingerprint(tokenizer) != own
    with pytest.raises(
        longfocus.LongFocusError, match=r"with another tokenizer.* Use the tokenizer that"
    ):
        check_tokenizer(document, tokenizer_fingerprint(tokenizer))
    with pytest.raises(longfocus.LongFocusError, match="with another tokenizer"):
        longfocus.Session(model, tokenizer, documents=[document])
