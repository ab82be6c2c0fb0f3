"""Few-shot learning: who knows the demonstrations chooses the right label, and every kind of file is read."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from examining import Knowing, Session
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiments import experiment, fewshot
from longfocus.evaluation.labelled import Example, load
from longfocus.evaluation.results import Results
from longfocus.evaluation.runner import run
from small import byte_tokenizer

KINDS = {"apple": "fruit", "pear": "fruit", "owl": "animal", "saw": "tool"}
EXAMPLES = [(f"{word} {number}", KINDS[word]) for number in range(8) for word in KINDS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "kinds.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": la}) + "\n" for t, la in EXAMPLES))
    return path


def label_of(question: str, known: str) -> str | None:
    """The label of a demonstration about the same thing."""
    asked = re.search(r"Text: (\w+) \d+\nLabel:[^\n]*\s*$", question)
    found = asked and re.search(rf"Text: {asked[1]} \d+\nLabel: (\w+)\n", known)
    return found[1] if found else None


class LabelCache:
    """What the model has seen of one question, in each row, and what it knows besides."""

    config = SimpleNamespace(window=64, kept=32)

    def __init__(self, known: str, rows: Sequence[str] = ("",)) -> None:
        self.known, self.rows = known, list(rows)

    local = property(lambda self: len(self.rows[0]))

    def fork(self) -> "LabelCache":
        return LabelCache(self.known, self.rows)

    def batch_repeat_interleave(self, rows: int) -> None:
        self.rows *= rows


class LabelModel:
    """Finds those tokens likely that continue a question with the label of a demonstration like it."""

    device = torch.device("cpu")

    def __call__(
        self, input_ids: Tensor, past_key_values: LabelCache, logits_to_keep: int = 0
    ) -> Any:
        logits = torch.zeros(*input_ids.shape, 300)
        for row, ids in enumerate(input_ids):
            for place, token in enumerate(ids):
                past_key_values.rows[row] += byte_tokenizer().decode(token)
                question, _, written = past_key_values.rows[row].partition("Label:")
                expected = f" {label_of(f'{question}Label:', past_key_values.known)}\n\n"
                if len(written) < len(expected) and expected.startswith(written):
                    (likely,) = byte_tokenizer()(expected[len(written)])["input_ids"]
                    logits[row, place, likely] = 9.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


class LabelSession(Session):
    def cache(self) -> Any:
        return LabelCache("".join(self.texts))

    def _answer(self, question: str) -> str:
        return f" {label_of(question, ''.join(self.texts))}.\n\nText: more"


class Labelling(Knowing):
    """Knows what the demonstrations in its memory show."""

    def __init__(self, *, remembers: bool = True) -> None:
        super().__init__(byte_tokenizer())
        self.model, self.remembers = LabelModel(), remembers

    @contextmanager
    def session(self) -> Iterator[Session]:
        made = LabelSession(self.model)
        yield made
        self.costs.note(made)


def measured(subject: Any, data: Path, **settings: Any) -> list[dict[str, Any]]:
    chosen, results = experiment("fewshot"), Results()
    given = {"data": str(data), "tokens": ("256", "512"), "questions": 8, **settings}
    run(chosen, chosen.settings(**given), subject, results)
    return results.rows


@pytest.mark.parametrize("free", [False, True])
def test_who_knows_the_demonstrations_is_always_right(data: Path, free: bool) -> None:
    rows = measured(Labelling(), data, free=free)
    assert [row["accuracy"] for row in rows] == [1.0, 1.0]
    assert rows[0]["accuracy_without_memory"] < 0.7
    assert rows[0]["demonstrations"] < rows[1]["demonstrations"] <= len(EXAMPLES) - 8
    for row in rows:
        assert row["tokens"] - 30 < row["tokens_read"] <= row["tokens"]
        assert ("choices" in row) is not free


@pytest.mark.parametrize("free", [False, True])
def test_who_forgets_the_demonstrations_has_what_chance_gives(data: Path, free: bool) -> None:
    for row in measured(Labelling(remembers=False), data, free=free):
        assert row["accuracy"] == row["accuracy_without_memory"] < 0.7


def test_a_longer_memory_has_the_same_questions_and_more_demonstrations(data: Path) -> None:
    settings = fewshot.FewshotSettings(data=str(data), questions=8)
    cells = [{"tokens": tokens, "seed": seed} for tokens, seed in ((256, 1), (512, 1), (256, 2))]
    one, longer, other = (list(fewshot.records(Labelling(), settings, cell)) for cell in cells)
    texts = [[record["text"] for record in records] for records in (one, longer, other)]
    assert texts[0] == texts[1] != texts[2]
    assert one[0]["demonstrations"] < longer[0]["demonstrations"]


def of_labels(tmp_path: Path, *examples: tuple[str, Any]) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": la}) + "\n" for t, la in examples))
    return path


def test_labels_that_differ_in_case_alone_are_chosen_apart(tmp_path: Path) -> None:
    kinds = {"apple": "A", "pear": "a", "owl": "a", "saw": "A"}
    path = of_labels(tmp_path, *((text, kinds[text.split()[0]]) for text, _ in EXAMPLES))
    (row,) = measured(Labelling(), path, tokens=("512",))
    assert row["choices"] == 2
    assert row["accuracy"] == 1
    assert row["accuracy_without_memory"] < 1


def test_a_label_that_no_written_answer_can_miss_is_refused(tmp_path: Path) -> None:
    subject, path = Labelling(), of_labels(tmp_path, ("one", "x"), ("two", "."))
    with pytest.raises(LongFocusError, match=r"Got the label '\.' in --data"):
        measured(subject, path, questions=1, free=True)
    assert measured(subject, path, questions=1)[0]["choices"] == 2


@pytest.mark.parametrize("free", [False, True])
def test_the_text_of_a_question_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    path = of_labels(tmp_path, *EXAMPLES, *EXAMPLES[:20], (f" {EXAMPLES[0][0]} ", "fruit"))
    settings = fewshot.FewshotSettings(data=str(path), questions=8, free=free)
    subject, seen = Labelling(), []
    monkeypatch.setattr(subject, "read", lambda session, text, name: seen.append(text))
    found = list(fewshot.records(subject, settings, {"tokens": 4096, "seed": 1}))
    shown = re.findall(r"Text: (.*)\n", "".join(seen))
    assert not {record["text"] for record in found} & set(shown)
    dropped = fewshot.row(found)["dropped"]
    assert dropped > 0
    assert 8 + dropped + len(shown) == len(EXAMPLES) + 21


def test_data_with_one_text_alone_is_refused(tmp_path: Path) -> None:
    path = of_labels(tmp_path, *[("one", "a")] * 5)
    told = "5 examples: 2 of them are questions, and 3 have the text of a question"
    with pytest.raises(LongFocusError, match=told):
        measured(Labelling(), path, questions=2)


# the second as some spreadsheets write it
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_every_kind_of_file_is_read(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text('{"q": "a, b", "a": "x"}\n\n{"q": "c", "a": "y"}\n', encoding)
    else:
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
            writer.writerows([("q", "a"), ("a, b", "x"), ("c", "y")])
    assert load(str(path), "", "q", "a") == [Example("a, b", ("x",)), Example("c", ("y",))]


def test_a_list_of_labels_holds_several_right_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "who?", "label": ["He", " she "]}) + "\n")
    (example,) = load(str(path), "", "text", "label")
    assert example.labels == ("He", "she")
    free = fewshot.FewshotSettings(data="data", free=True)
    assert fewshot._is_right(free, example, ' "SHE".\nand so on')
    assert not fewshot._is_right(free, example, "nobody")
    chosen = fewshot.FewshotSettings(data="data")
    assert fewshot._is_right(chosen, example, "she")
    assert not fewshot._is_right(chosen, example, "She")


def test_a_dataset_has_names_for_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["no", "yes"])}
    )
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "kind": [1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: made)
    assert load("some/data", "test", "text", "kind") == [
        Example("a", ("yes",)),
        Example("b", ("no",)),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}\n', "nothing in 'label'. It has: text"),
        ("[1]\n", "nothing in 'text'"),
        ("{", "cannot be read"),
    ],
)
def test_damaged_data_is_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(LongFocusError, match=re.escape(told)):
        load(str(path), "", "text", "label")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data": ""}, "no labelled texts"),
        ({"template": "{label} {text}"}, "must hold {text}"),
        ({"template": "{text}"}, "must hold {text}"),
        ({"questions": 0}, "at least 1"),
        ({"questions": 32}, "has 32 examples"),
        ({"tokens": ("8",)}, "No example finds room in 8 tokens"),
        ({"data": "/tmp"}, "no kind of file"),
    ],
)
def test_what_cannot_be_asked_is_refused(data: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(LongFocusError, match=told):
        measured(Labelling(), **{"data": data, **settings})
