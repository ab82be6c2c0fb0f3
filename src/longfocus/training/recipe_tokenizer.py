"""The tokenizer of a recipe: the model's, another, or one that is learnt from the data."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.hf.pretrained import resolve
from longfocus.training.output import DATA_FOLDER
from longfocus.training.readers import open_reader
from longfocus.training.recipe import ContinueRecipe, InstructRecipe, Recipe, ScratchRecipe
from longfocus.training.records import LeftOut
from longfocus.training.sources import Source
from longfocus.training.tokenised import Report
from longfocus.training.tokenizer import train_tokenizer

PLAIN_CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Chat template of tokenizers that have none: a line per message. It is saved with the model."""

MOST_CHARACTERS = 50_000_000
"""More would not change what is learnt."""


def open_tokenizer(recipe: Recipe, directory: Path, report: Report) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer; one that is to be learnt is learnt once and kept."""
    place = tokenizer_place(recipe, directory)
    is_learnt = isinstance(recipe, ScratchRecipe) and recipe.tokenizer is None
    if is_learnt and not (Path(place) / "tokenizer.json").exists():
        assert isinstance(recipe, ScratchRecipe)
        report("learning the tokenizer", 0, 0)
        made = train_tokenizer(texts_of(recipe.sources), recipe.vocabulary)
        made.save_pretrained(place)
    try:
        found = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise LongFocusError(
            f"No tokenizer was found at {place!r}: {error}\nGive --tokenizer with a folder or hub id."
        ) from error
    assert isinstance(found, PreTrainedTokenizerBase)
    if isinstance(recipe, InstructRecipe) and found.chat_template is None:
        found.chat_template = PLAIN_CHAT
    return found


def tokenizer_place(recipe: Recipe, output: Path) -> str:
    """Where the tokenizer of the recipe is found; one that is learnt lies in the output."""
    if isinstance(recipe, ContinueRecipe):
        return resolve(recipe.tokenizer or recipe.model)
    assert isinstance(recipe, ScratchRecipe)
    if recipe.tokenizer is not None:
        return recipe.tokenizer
    # of other data or another size it is another one
    decides = (recipe.data, recipe.kind, recipe.text_field, recipe.vocabulary)
    name = hashlib.sha256(repr(decides).encode()).hexdigest()[:12]
    return str(output / DATA_FOLDER / f"tokenizer-{name}")


def texts_of(sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all sources in turn, contents of chat messages among them; raises LongFocusError if there are none."""
    given = 0
    for source in sources:
        read = 0
        for record in open_reader(source).records(LeftOut()):
            texts = [record.content] if isinstance(record.content, str) else _said(record.content)
            for text in texts:
                yield text
                read += len(text)
            if read > MOST_CHARACTERS / len(sources):
                break
        given += read
    if not given:
        raise LongFocusError(
            f"There is no text in {', '.join(source.path for source in sources)}. Check the paths and their kind."
        )


def _said(messages: list[dict]) -> list[str]:
    return [str(message.get("content", "")) for message in messages]
