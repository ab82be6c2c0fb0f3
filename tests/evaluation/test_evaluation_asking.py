"""How questions are put: greedily whatever a model brings along, and beginnings of lines without a chat template."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from families import SIZES, random_model
from long import mostly_long
from longfocus.evaluation.experiments import experiment
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.evaluation.runner import described
from longfocus.evaluation.subject import Subject, answer_plainly
from small import byte_tokenizer, small_model


def test_a_model_answers_greedily_whatever_its_generation_config_says() -> None:
    model = random_model("llama", SIZES, "sdpa")
    ids = torch.arange(10, 18)[None]
    own = {"eos_token_id": [1, 2], "pad_token_id": 3, "bos_token_id": 1}

    def answer() -> list[int]:
        return model.generate(ids, max_new_tokens=20, do_sample=False)[0].tolist()

    model.generation_config = GenerationConfig(**own)
    plain = answer()
    model.generation_config = GenerationConfig(repetition_penalty=5.0, num_beams=3, **own)
    assert answer() != plain
    answer_plainly(model)
    assert answer() == plain
    assert {name: getattr(model.generation_config, name) for name in own} == own


BEGINNINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "landmark": ("passkey", {"questions": 2, "text": "landmark"}),
    "plain": ("passkey", {"questions": 2, "text": "plain", "keys": 2}),
    "hard": ("passkey", {"questions": 2, "text": "hard"}),
    "needle": ("needle", {"wording": "passkey", "depths": 1}),
}


@pytest.mark.parametrize("asked", mostly_long(BEGINNINGS, "landmark"))
def test_beginnings_of_lines_are_continued_by_models_that_chat(asked: str) -> None:
    name, given = BEGINNINGS[asked]
    chosen, found = experiment(name), []
    settings = chosen.settings(tokens=("256",), **given)
    (cell,) = chosen.cells(settings)
    for chat in (False, True):
        subject = Subject(small_model(window=128), byte_tokenizer(chat=chat))
        subject.begin(cell)
        found.append(list(chosen.records(subject, settings, cell)))
    assert found[0] == found[1]
    assert any(record["answer"] for record in found[0])


def test_a_run_goes_on_with_the_same_template_and_output_only(tmp_path: Path) -> None:
    settings = experiment("passkey").settings()

    def fingerprint(model: Any, *, chat: bool = False) -> Any:
        subject = Subject(model, byte_tokenizer(chat=chat), folder=tmp_path)
        return described("passkey", settings, MemoryOptions(), subject)["fingerprint"]

    for model in (small_model(), random_model("llama", SIZES, "sdpa")):
        before = fingerprint(model)
        assert before == fingerprint(model)
        assert before != fingerprint(model, chat=True)
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1
            after = fingerprint(model)
            model.lm_head.weight[0, 0] -= 1
        assert {name for name in after if after[name] != before[name]} >= {"output"}
