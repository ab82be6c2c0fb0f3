"""Models whose memory has places are evaluated in one stream, which gives what one long forward pass gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import longfocus
from families import SIZES
from longfocus.config import FocusConfig
from longfocus.core import dictionary_task as task
from longfocus.errors import LongFocusError
from longfocus.evaluation.contexts import empty_context, holding
from longfocus.evaluation.dictionary import answers_right, whole_answers_right
from longfocus.evaluation.experiments import experiment
from longfocus.evaluation.stream import WINDOWS_TOGETHER, Stream
from longfocus.evaluation.subject import Subject
from small import byte_tokenizer

WINDOW = 16


def subject(window: int = WINDOW, **options: Any) -> Subject:
    torch.manual_seed(3)
    sizes = {**SIZES, "vocab_size": task.VOCABULARY, "num_hidden_layers": 3}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).eval()
    # all layers look into the memory, so that a stream is one long attention
    config = FocusConfig(memory_layers=(0, 1, 2), window=window, positions="true")
    longfocus.attach(model, config)
    return Subject(model, **options)


def ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(task.VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))


def plain_logits(model: Any, *texts: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.cat(texts)[None]).logits[0]


# less than a window, whole windows, more than go through the model at once
@pytest.mark.parametrize("tokens", [5, 2 * WINDOW, (WINDOWS_TOGETHER + 2) * WINDOW + 3])
def test_evaluation_of_a_window_in_a_stream_is_that_of_one_long_forward(tokens: int) -> None:
    own, before, window = subject(), ids(tokens), ids(WINDOW, 1)
    own.begin({})
    with torch.no_grad(), empty_context(own) as context, holding(context, before):
        found = context.logits(window)
    longfocus.detach(own.model)
    torch.testing.assert_close(found, plain_logits(own.model, before, window)[-WINDOW:])


def test_evaluation_asks_every_row_behind_the_same_stream() -> None:
    own = subject(window=task.WINDOW)
    own.begin({})
    records = task.draw_memory(5 * task.WINDOW, 1)
    before = task.memory_windows(records, 0, 5).flatten()
    asked = records.take(torch.arange(2 * task.RECORDS_PER_WINDOW))
    with own.session() as session:
        own.read(session, before)
        assert isinstance(session, Stream)
        assert session.tokens == 5 * task.WINDOW
        assert session.nbytes == own.costs.memory_bytes > 0
        right = answers_right(session, asked)
        whole = whole_answers_right(session, asked.take(torch.arange(3)))
    assert whole.shape == (3,)
    windows = task.to_windows(asked, task.QUESTION_MARK, task.RECORDS_PER_WINDOW, task.WINDOW)
    is_answer = task.answer_labels(windows, task.RECORDS_PER_WINDOW)[:, 1:] != -100
    longfocus.detach(own.model)
    guessed = torch.stack(
        [plain_logits(own.model, before, row)[-task.WINDOW : -1].argmax(-1) for row in windows]
    )
    expected = (guessed == windows[:, 1:])[is_answer].view(-1, task.KEY_LENGTH)
    assert torch.equal(right, expected)


@pytest.mark.parametrize("name", ["distraction", "retrieval", "layers"])
def test_evaluation_refuses_a_stream_where_documents_lie_side_by_side(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").write_text("abc" * 100)
    chosen = experiment(name)
    given = {"file": tmp_path / "file.txt"} if name == "retrieval" else {"data": (tmp_path,)}
    own = Subject(subject().model, byte_tokenizer())
    own.begin({})
    settings = chosen.settings(tokens=("16",), **given)
    with pytest.raises(LongFocusError, match="one stream"):
        list(chosen.records(own, settings, next(iter(chosen.cells(settings)))))


def test_evaluation_in_a_stream_refuses_a_prefix_of_windows() -> None:
    with (
        pytest.raises(LongFocusError, match="A stream has no prefix"),
        subject(window_prefix=[1]).session(),
    ):
        pass
