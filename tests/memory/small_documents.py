"""A small document of random pairs, and a tiny model that can look into it."""

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

import longfocus
from families import SIZES, VOCABULARY, random_model
from longfocus import DocumentMemory
from longfocus.hf.fingerprint import model_fingerprint
from longfocus.memory import Part
from longfocus.memory.description import ReadWith

LAYERS, KV_HEADS, DIM = (1, 3), 2, 8
# One token per character, of one to four bytes.
TEXT = "The owl 🦉 saw nine keys.\n\nÇa va? Über 42 Schlüssel:\r\nabc déf ghi"


@cache
def small_model() -> PreTrainedModel:
    """One model for all tests, so leave it as it is."""
    model = random_model("llama", SIZES, "sdpa")
    focus = longfocus.FocusConfig(memory_layers=LAYERS, window=13, last_context_length=5)
    return longfocus.attach(model, focus)


def small_document(
    name: str = "owl", *, seed: int = 0, text: str = TEXT, **changes: Any
) -> DocumentMemory:
    """The same document for the same arguments; `seed` makes other pairs."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randn(2, 2, 1, KV_HEADS, len(text), DIM, generator=generator)
    given = {
        "layers": {layer: Part(*pairs[place]) for place, layer in enumerate(LAYERS)},
        "token_ids": torch.randint(3, VOCABULARY, (len(text),), generator=generator),
        "read_with": ReadWith("window_start", 13, (), model_fingerprint(small_model()), None),
        "text": text,
        "offsets": torch.arange(len(text))[:, None] + torch.tensor([0, 1]),
    }
    return DocumentMemory.of(name=name, **{**given, **changes})


def answer(*documents: DocumentMemory) -> torch.Tensor:
    """Logits of a short text that sees the documents."""
    cache = longfocus.FocusCache(small_model(), documents)
    with torch.no_grad():
        return small_model()(torch.arange(3, 12)[None], past_key_values=cache).logits
