"""The tokenizer of a recipe: the model's, another, or one that is learnt from the data."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.training.output import DATA_FOLDER
from longfocus.training.places import place_of
from longfocus.training.readers import open_reader
from longfocus.training.recipe import ContinueRecipe, InstructRecipe, Recipe, ScratchRecipe
from longfocus.training.records import LeftOut, unread
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

logger = logging.getLogger(__name__)


def open_tokenizer(recipe: Recipe, directory: Path, report: Report) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer; one that is to be learnt is learnt once and kept."""
    place = tokenizer_place(recipe, directory)
    is_learnt = isinstance(recipe, ScratchRecipe) and recipe.tokenizer is None
    if is_learnt and not (Path(place) / "tokenizer.json").exists():
        assert isinstance(recipe, ScratchRecipe)
        report("learning the tokenizer", 0, 0)
        made = train_tokenizer(texts_of(recipe.sources), recipe.vocabulary)
        if len(made) < recipe.vocabulary:
            logger.warning(
                "The vocabulary has %d entries, fewer than --vocabulary %d: the data give no more.",
                len(made),
                recipe.vocabulary,
            )
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
        if recipe.tokenizer is None:
            return place_of(recipe.model, "--model")
        return place_of(recipe.tokenizer, "--tokenizer")
    assert isinstance(recipe, ScratchRecipe)
    if recipe.tokenizer is not None:
        return place_of(recipe.tokenizer, "--tokenizer")
    # of other data or another size it is another one
    decides = (recipe.data, recipe.kind, recipe.text_field, recipe.vocabulary)
    name = hashlib.sha256(repr(decides).encode()).hexdigest()[:12]
    return str(output / DATA_FOLDER / f"tokenizer-{name}")


def texts_of(sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all sources in turn, contents of chat messages among them; raises LongFocusError if there are none."""
    given, why = 0, ""
    for source in sources:
        read, left_out = 0, LeftOut()
        for record in open_reader(source).records(left_out):
            texts = [record.content] if isinstance(record.content, str) else _said(record.content)
            for text in texts:
                yield text
                read += len(text)
            if not any(texts):
                left_out.add(record.where, "no text")
            if read > MOST_CHARACTERS / len(sources):
                break
        given += read
        why += unread(source, left_out)
    if not given:
        raise LongFocusError(
            f"There is no text in {', '.join(source.path for source in sources)}.{why} A tokenizer is learnt from "
            "texts. Check the paths and their kind (--kind)."
        )


def _said(messages: list[dict]) -> list[str]:
    return [str(message.get("content", "")) for message in messages]
