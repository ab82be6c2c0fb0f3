"""Subjects that know everything or nothing, and a tiny experiment: for the tests of `longfocus evaluate`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import longfocus
from families import random_model
from longfocus.core import dictionary_task as task
from longfocus.evaluation.costs import Costs
from longfocus.evaluation.experiment import Cell, Experiment, Record, Row, Settings
from longfocus.evaluation.intervals import share
from longfocus.evaluation.subject import Subject
from longfocus.inference.answer import Answer
from longfocus.memory.audit import Retained


@dataclass(frozen=True, kw_only=True)
class CountSettings(Settings):
    """Of the tiny experiment."""

    questions: int = 3
    """Examples of a cell."""


def count_records(subject: Any, settings: CountSettings, cell: Cell) -> Iterator[Record]:
    for number in range(settings.questions):
        subject.tell("counting")
        yield {"number": number, "is_right": (number + cell["seed"]) % 2 == 0}


def count_row(records: Sequence[Record]) -> Row:
    return share(record["is_right"] for record in records)


COUNT = Experiment(settings=CountSettings, records=count_records, row=count_row)


class Session:
    """What experiments use of a session; `Knowing` answers from all that was read, `Blind` from nothing."""

    def __init__(self, model: Any) -> None:
        self.model, self.texts, self.ids = model, [], []
        self.documents: list[Any] = []

    tokens = property(lambda self: sum(document.tokens for document in self.documents))
    nbytes = property(lambda self: 100 * self.tokens)
    retained = property(lambda self: {1: Retained(0.995, 0.99, 0.9, 10, 0)})

    def cache(self) -> "Session":
        return self

    def ask(self, questions: Any, max_new_tokens: int) -> Any:
        several = [questions] if isinstance(questions, str) else questions
        answers = [Answer(self._answer(text), ()) for text in several]
        return answers[0] if isinstance(questions, str) else answers

    def _answer(self, question: str) -> str:
        text = "".join(self.texts)
        named = re.search(r"(The [\w ]+ of '\w+' is) ?$", question)
        asked = named.group(1) if named else "The pass key is"
        found = re.search(rf"{asked} (\d+)", text)
        return f"{found.group(1)}." if found else "nobody knows"


class DictionaryModel:
    """Predicts the next token of questions from the records that a session has read."""

    device = torch.device("cpu")
    focus = SimpleNamespace(config=SimpleNamespace(window=256))

    def __call__(self, input_ids: Tensor, past_key_values: Session) -> Any:
        known = dict(records for ids in past_key_values.ids for records in records_of(ids))
        logits = torch.zeros(*input_ids.shape, task.VOCABULARY)
        for row, window in enumerate(input_ids):
            self._answer(window.tolist(), known, logits[row])
        return SimpleNamespace(logits=logits)

    @staticmethod
    def _answer(window: list[int], known: dict[Any, Any], logits: Tensor) -> None:
        for start in range(0, len(window) - task.RECORD_LENGTH + 1, task.RECORD_LENGTH):
            key = tuple(window[start + 1 : start + 5])
            # who knows nothing says the same symbol always
            value = known.get(key, (task.FIRST_SYMBOL,) * 4)
            for place in range(4):
                logits[start + 5 + place, value[place]] = 1

    def generate(self, input_ids: Tensor, past_key_values: Session, **options: Any) -> Tensor:
        window = torch.nn.functional.pad(input_ids, (0, task.KEY_LENGTH))
        best = self(window, past_key_values).logits.argmax(-1)
        return torch.cat([input_ids, best[:, task.RECORD_LENGTH - 5 : -1]], 1)


def records_of(ids: Tensor) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for window in ids.view(-1, task.WINDOW)[:, : 25 * task.RECORD_LENGTH].tolist():
        for start in range(0, len(window), task.RECORD_LENGTH):
            yield tuple(window[start + 1 : start + 5]), tuple(window[start + 6 : start + 10])


class Knowing:
    """A subject that answers from everything it has read."""

    remembers = has_memory = True
    is_one_stream = False

    def __init__(self, tokenizer: Any = None) -> None:
        self.model, self.tokenizer, self.folder = DictionaryModel(), tokenizer, Path()
        self.window, self.window_prefix = 128, ()
        self.begin({})

    costs_aside = Subject.costs_aside
    refuse_one_stream = Subject.refuse_one_stream

    def beginnings(self, texts: Sequence[str]) -> Sequence[str]:
        """As they are: its sessions are asked texts."""
        return texts

    def begin(self, cell: Cell, tell: Any = lambda done, text: None) -> None:
        self.costs, self.expected, self._tell = Costs(), cell.get("tokens", 0), tell

    def tell(self, text: str) -> None:
        self._tell(0, text)

    @contextmanager
    def session(self) -> Iterator[Session]:
        made = Session(self.model)
        yield made
        self.costs.note(made)

    def read(self, session: Session, source: Any, name: str | None = None) -> Any:
        is_text = isinstance(source, str)
        tokens = len(self.tokenizer(source)["input_ids"] if is_text else source)
        if self.remembers:
            (session.texts if is_text else session.ids).append(source)
        session.documents.append(SimpleNamespace(tokens=tokens))
        return session.documents[-1]

    def answering(self) -> Any:
        return self.costs.timed("answering")


class Blind(Knowing):
    """A subject that forgets everything it reads."""

    remembers = False


def tiny_dictionary_model() -> Any:
    """A random model of the dictionary task, with one memory layer."""
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = random_model("llama", {**sizes, **heads, "max_position_embeddings": 256}, "sdpa")
    focus = longfocus.FocusConfig(memory_layers=(1,), window=256, positions="none")
    return longfocus.attach(model, focus, verify=False)
