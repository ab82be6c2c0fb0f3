"""A few documents, a tokenizer that knows their words, and the documents in every form that a source can have."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from longfocus.training.sources import Source
from longfocus.training.tokenizer import train_tokenizer

TEXTS = [
    "The owl saw nine keys.\n",
    "Ça va? Über 42 Schlüssel:\r\n\n",
    " the pass key is 7\n" * 20,
    "🦉",
    "one line without an end",
]
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|end|>\n{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>\n{% endif %}{% endfor %}"
)


@cache
def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte pairs learnt from the texts; end of text is token 0. One per template, so leave it as it is."""
    made = train_tokenizer(iter(TEXTS * 3), 320)
    made.chat_template = chat_template
    return made


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def write_files(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
    return folder


def write_lines(path: Path, entries: list[Any]) -> Path:
    return (
        write_files(
            path.parent, {path.name: "".join(json.dumps(entry) + "\n" for entry in entries)}
        )
        / path.name
    )


def as_text(folder: Path) -> Source:
    write_files(folder, {f"{place}.txt": text for place, text in enumerate(TEXTS)})
    return Source(str(folder))


def as_lines(folder: Path) -> Source:
    write_lines(folder / "a.jsonl", [{"text": text, "id": 1} for text in TEXTS[:2]])
    write_lines(folder / "b.jsonl", [{"id": 2, "text": text} for text in TEXTS[2:]])
    return Source(str(folder))


def as_parquet(folder: Path) -> Source:
    import datasets

    folder.mkdir()
    for name, texts in (("a", TEXTS[:2]), ("b", TEXTS[2:])):
        datasets.Dataset.from_dict({"id": [*range(len(texts))], "text": texts}).to_parquet(
            folder / f"{name}.parquet"
        )
    return Source(str(folder))


def as_saved_dataset(folder: Path) -> Source:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    return Source(str(folder))


def as_saved_splits(folder: Path) -> Source:
    import datasets

    one = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": one.select([0]), "test": one}).save_to_disk(folder)
    return Source(str(folder), split="test")


def as_dataset_folder(folder: Path) -> Source:
    """What `datasets` loads by itself, here its cache of it is beside it."""
    as_lines(folder)
    return Source(str(folder), kind="dataset")


FORMS: list[Callable[[Path], Source]] = [
    as_text,
    as_lines,
    as_parquet,
    as_saved_dataset,
    as_saved_splits,
    as_dataset_folder,
]


def as_worker(call: Any, worker: int, workers: int) -> Any:
    """Calls as DataLoader worker number `worker`; 0 workers: in the main process."""
    info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data.get_worker_info", lambda: info)
        return call()
