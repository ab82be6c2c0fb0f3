"""Crossbatch with scaled rotary encodings, and in one stream: a document in windows is a document at once."""

from typing import Any

import pytest
import torch
from attached import WINDOW, with_memory
from crossbatch_oracle import crossbatch_oracle
from torch.nn.functional import cross_entropy
from training_steps import assert_same_gradients, training_batch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import longfocus
from families import SIZES, VOCABULARY, fill_with_peaked_weights
from longfocus.core.plans import packed_plan
from longfocus.training.contexts import parse_contexts
from longfocus.training.crossbatch import Crossbatch
from longfocus.training.methods import Batch
from longfocus.training.model import scale_positions
from longfocus.training.schedule import parse_schedule
from oracle import Memory

# shorter than a window of 13: scaling is needed within a window already
POSITIONS = 9
SCALINGS = [None, "linear:4", "dynamic:2", "yarn:4"]
WHOLE = "1/3(0,0) 1/3(1,0) 1/3(2,0)"

every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=str)


def scaled_model(scaling: str | None, layers: int = 4) -> PreTrainedModel:
    """A random model in float64 whose positions are scaled as a recipe scales them."""
    longest = 256 if scaling is None else POSITIONS
    settings = {**SIZES, "num_hidden_layers": layers, "max_position_embeddings": longest}
    config = scale_positions(AutoConfig.for_model("llama", **settings), scaling)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    fill_with_peaked_weights(model)
    return model.double().train()


@pytest.mark.parametrize("positions", ["window_start", "none"])
@every_scaling
def test_a_step_with_scaled_rotary_has_the_loss_and_gradients_of_the_plain_formula(
    scaling: str | None, positions: str
) -> None:
    plain, model = (
        scaled_model(scaling),
        with_memory(scaled_model(scaling), (1, 3), positions=positions),
    )
    plan, batch = packed_plan(3, windows=2, d=2), training_batch((0, 3, 0, 0, 5, 2))
    expected = crossbatch_oracle(plain, plan, Memory((1, 3), positions), batch)
    expected.loss.backward()
    actual = model(**batch, additional_contexts=plan)
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, expected.loss)
    assert_same_gradients(model, plain)


def document_batch(documents: int, windows: int, padding: int = 4) -> Batch:
    """Documents of `windows` windows each; the last tokens of the last one are missing."""
    tokens = torch.randint(3, VOCABULARY, (documents, windows * WINDOW + 1))
    number = torch.arange(documents)[:, None].expand(-1, windows * WINDOW).clone()
    number[-1, -padding:] = -1
    labels = tokens[:, 1:].masked_fill(number < 0, -100)
    given = {"input_ids": tokens[:, :-1] * (number >= 0), "labels": labels, "documents": number}
    shape = (documents * windows, WINDOW)
    return Batch(**{name: value.reshape(shape) for name, value in given.items()})


def one_stream(contexts: str, d: str = "1", **options: Any) -> Crossbatch:
    return Crossbatch(parse_contexts(contexts), parse_schedule(d), one_stream=True, **options)


@pytest.mark.parametrize("contexts", ["paper", WHOLE])
@pytest.mark.parametrize("layers", [1, 3])
@every_scaling
def test_true_positions_in_all_layers_are_the_plain_model_over_the_whole_document(
    scaling: str | None, layers: int, contexts: str
) -> None:
    method = one_stream(contexts)
    windows, documents = method.contexts.windows, 2
    if scaling == "linear:4":
        # linear positions go as far as is asked for, nothing depends on the longest
        scaling = "linear:8"
    plain = scaled_model(scaling, layers)
    model = with_memory(scaled_model(scaling, layers), tuple(range(layers)), positions="true")
    batch = document_batch(documents, windows)
    count = int((batch["labels"] >= 0).sum())
    loss = {"labels": batch["labels"], "shift_labels": batch["labels"], "num_items_in_batch": count}
    actual = method.forward(model, batch, loss)
    actual.loss.backward()
    logits = plain(batch["input_ids"].view(documents, -1), use_cache=False).logits
    logits = logits.view(documents * windows, WINDOW, VOCABULARY)
    expected = (
        cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum") / count
    )
    expected.backward()
    real = batch["documents"] >= 0
    torch.testing.assert_close(actual.logits[real], logits[real], atol=2e-5, rtol=0)
    torch.testing.assert_close(actual.loss.double(), expected, atol=1e-5, rtol=0)
    assert_same_gradients(model, plain)


@pytest.mark.parametrize(
    ("contexts", "d", "is_refused"),
    [
        ("paper", "1", False),
        ("paper", "2", True),
        ("published(packing=2)", "1", True),
        ("1/2(0,0) 1/2(1,1)", "1", True),
        ("1/2(0,0) 1/2(1,0)", "9", False),
    ],
)
def test_negatives_have_no_place_in_one_stream(contexts: str, d: str, is_refused: bool) -> None:
    model = with_memory(scaled_model(None, 2), (1,), positions="true")
    batch, method = document_batch(2, 2), one_stream(contexts, d)
    if not is_refused:
        method.forward(model, batch, {})
        return
    with pytest.raises(longfocus.LongFocusError, match=r"true.*has negatives"):
        method.forward(model, batch, {})
