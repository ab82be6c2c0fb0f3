"""Subjects, texts and tiny settings for the tests of `longfocus evaluate benefit`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from examining import Blind, Knowing, Session
from torch import Tensor
from transformers import LlamaConfig

from longfocus.evaluation.experiments import benefit
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from longfocus.inference.answer import Answer
from small import byte_tokenizer

BOS = 1
METHODS = ("truncated", "full", "memory", "memory_only", "bm25")
WINDOW = 384
LONGEST = 256
"""Tokens of a window of the small model."""
Row = dict[str, Any]


WORDINGS = [
    {"wording": "sentence", "record_wording": "sentence"},
    {"wording": "passkey", "record_wording": "code"},
]


def few_words(folder: Path) -> list[str]:
    """Words of names that the texts do not have, without a look through the standard library."""
    rng = np.random.default_rng(7)
    return sorted({"".join(rng.choice(list("klmnop"), size=6)) for _ in range(80)})


def written(folder: Path) -> Path:
    """Three documents of random words."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(60)]
    for number in range(3):
        lines = [" ".join(rng.choice(words, size=4)) for _ in range(120)]
        (folder / f"document_{number}.py").write_text("\n".join(lines))
    return folder


def settings_of(data: Path, **given: Any) -> benefit.BenefitSettings:
    tiny = {"tokens": ("1K",), "questions": 4, "entities": 2, "max_documents": 2, "windows": 2}
    return benefit.BenefitSettings(**{**tiny, "text": (data,), "methods": METHODS, **given})


def measured(subject: Any, data: Path, **given: Any) -> dict[tuple[str, str], Row]:
    """The rows, by method and task."""
    results = Results()
    run(benefit.EXPERIMENT, settings_of(data, **given), subject, results)
    return {(own["method"], own["task"]): own for own in results.rows}


def found(subject: Any, data: Path, method: str, task: str, tokens: int, **given: Any) -> list[Row]:
    cell = {"method": method, "task": task, "tokens": tokens, "seed": 1}
    settings = settings_of(data, tokens=(str(tokens),), **given)
    subject.begin(cell)
    return [dict(own) for own in benefit.records(subject, settings, cell)]


def answered(text: str) -> str:
    """What whoever has read a text that ends with a question says."""
    text = text.removesuffix("\n[answer] ")
    for asked, stated in (
        (r"(The [\w ]+ of '?[\w ]+'? is) ?$", "{} (\\w+)"),
        (r'assert ([\w.]+) == "$', '{} = "(\\w+")'),
    ):
        if question := re.search(asked, text):
            answer = re.search(stated.format(re.escape(question[1])), text)
            return f" {answer[1]}".lstrip() if answer else 'nobody knows"'
    raise AssertionError(f"no question: {text[-80:]}")


class Listening(Session):
    """Answers what the ids of its prompts and of what was read say."""

    asked: list[list[int]]
    whole: list[int]

    def ask(self, questions: Any, max_new_tokens: int, **options: Any) -> Any:
        assert options["last_context_length"] >= max(map(len, questions))
        self.asked += questions
        self.whole += [len(row) + max_new_tokens for row in questions]
        return [Answer(answered(self._text(row)), ()) for row in questions]

    def _text(self, row: list[int]) -> str:
        return byte_tokenizer().decode([*torch.cat([*self.ids, torch.tensor(row)])])


class Oracle(Knowing):
    """Knows all that it has read, and what stands in its prompt."""

    def __init__(self, tokenizer: Any, prefix: tuple[int, ...] = ()) -> None:
        super().__init__(tokenizer)
        self.window, self.window_prefix = WINDOW, prefix
        self.asked, self.whole = [], []
        text = SimpleNamespace(max_position_embeddings=WINDOW)
        self.model.config = SimpleNamespace(get_text_config=lambda: text)

    @contextmanager
    def session(self) -> Iterator[Any]:
        made = Listening(self.model)
        made.asked, made.whole = self.asked, self.whole
        yield made
        self.costs.note(made)


class Forgetful(Oracle, Blind):
    """Knows what stands in its prompt alone."""


class PlainModel:
    """A model without memory that knows what stands in its prompt."""

    device = torch.device("cpu")
    config = LlamaConfig(max_position_embeddings=3000)
    generation_config = SimpleNamespace(pad_token_id=0, eos_token_id=None)

    def __call__(self, **given: Any) -> None:
        """It reads nothing into its cache."""

    def generate(self, input_ids: Tensor, max_new_tokens: int, **given: Any) -> Tensor:
        tokenizer = byte_tokenizer()
        texts = [tokenizer.decode(row[row != 0]) for row in input_ids]
        new = [tokenizer(answered(text))["input_ids"][:max_new_tokens] for text in texts]
        padded = [ids + [0] * (max_new_tokens - len(ids)) for ids in new]
        return torch.cat([input_ids, torch.tensor(padded)], 1)
