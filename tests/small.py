"""A tiny model with memory, a tokenizer of bytes, and a text: for the tests of inference and of the command line."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import longfocus
from families import SIZES, random_model

WINDOW, KEPT = 16, 6
SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[answer] {% endif %}"
)
# Several lines, an empty one, a long one, and characters of one to four bytes.
TEXT = "The owl 🦉 saw nine keys.\n\nÇa va? Über 42 Schlüssel:\r\n" + "abc déf ghi " * 9 + "\nEnd"


@cache
def small_model(layers: tuple[int, ...] = (1,), **settings: Any) -> PreTrainedModel:
    """A random Llama of three layers with memory in `layers`; one model per settings, so leave it as it is."""
    sizes = {"vocab_size": 256 + len(SPECIAL), "num_hidden_layers": 3, "hidden_size": 24}
    model = random_model("llama", {**SIZES, **sizes, "intermediate_size": 24}, "sdpa")
    model.generation_config.eos_token_id = None
    config = {"window": WINDOW, "last_context_length": KEPT, **settings}
    return longfocus.attach(model, longfocus.FocusConfig(memory_layers=layers, **config))


@cache
def byte_tokenizer(*, chat: bool = False, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte; with `bos` a prompt begins with <s>, with `chat` there is a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = CHAT if chat else None
    return made


def ids_of(text: str) -> Tensor:
    return torch.tensor(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def session(layers: tuple[int, ...] = (1,), **settings: Any) -> longfocus.Session:
    """A new session of the small model with the plain byte tokenizer."""
    return longfocus.Session(small_model(layers, **settings), byte_tokenizer())


def keys(document: longfocus.DocumentMemory) -> list[Tensor]:
    """Keys and values of all memory layers."""
    return [tensor for part in document.layers.values() for tensor in (part.key, part.value)]


def assert_same_pairs(
    one: longfocus.DocumentMemory, other: longfocus.DocumentMemory, tolerance: float = 0.0
) -> None:
    """Equal token ids, and equal keys and values in every memory layer: bit for bit, or within a tolerance."""
    assert one.token_ids.equal(other.token_ids)
    assert list(one.layers) == list(other.layers)
    for first, second in zip(keys(one), keys(other), strict=True):
        assert first.shape[2] == one.tokens
        torch.testing.assert_close(first, second, atol=tolerance, rtol=0)
