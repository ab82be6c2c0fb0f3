"""What the code model is trained on, prepared once and kept under `data/`: corpus, tokenizer, words of the names."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longfocus.training.code_recipe import CodeRecipe
from longfocus.training.corpus import (
    Corpus,
    corpus_source,
    find_documents,
    save_source,
    tokenise_corpus,
)
from longfocus.training.passkey_task import Words, choose_words
from longfocus.training.tokenizer import train_tokenizer

SAMPLE_EVERY = 6
"""Tokenizer and words are learnt from every sixth document."""

Prepare = Callable[[str, int, int], None]
"""Called with (what, done, total) while data is prepared."""


@dataclass(frozen=True)
class CodeData:
    """What training reads; lies on disk under `data/`."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    words: Words
    source: dict[str, Any]


def prepare_data(folder: Path, recipe: CodeRecipe, prepare: Prepare) -> CodeData:
    """Corpus, tokenizer and words; everything that is already in `folder` is kept."""
    documents = find_documents(
        progress=lambda done, total: prepare("looking at packages", done, total)
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "words.json").exists():
        prepare("learning the tokenizer", 0, 1)
        tokenizer = train_tokenizer(
            (d.text() for d in documents[::SAMPLE_EVERY]), recipe.vocabulary
        )
        tokenizer.save_pretrained(folder / "tokenizer")
        words = choose_words((d.text() for d in documents[::SAMPLE_EVERY]), recipe.seed)
        save_source(corpus_source(documents), folder / "source.json")
        (folder / "words.json").write_text(json.dumps({"train": words.train, "test": words.test}))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    corpus = tokenise_corpus(
        documents,
        tokenizer,
        folder,
        progress=lambda done, total: prepare("tokenising", done, total),
    )
    words = json.loads((folder / "words.json").read_text())
    source = json.loads((folder / "source.json").read_text())
    return CodeData(corpus, tokenizer, Words(tuple(words["train"]), tuple(words["test"])), source)
