"""The models of the bench: random Llamas for exact paths and latencies, trained ones for all that leaves keys out."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longfocus.core import dictionary_task as task
from longfocus.core.processor import multiplies
from longfocus.evaluation.speed.settings import Shape
from longfocus.memory import Part
from longfocus.memory.description import ReadWith
from longfocus.memory.document import DocumentMemory

# Random keys repeat after so many: making millions of random numbers takes longer than searching them.
REPEATED_KEYS = 2**14
# Wide enough that attention is not uniform, and that a wrong memory changes the logits.
_SPREAD = 0.06


def random_model(shape: Shape, dtype: torch.dtype | None = None) -> Any:
    """A Llama of random weights with a memory in their type: bfloat16, or float32 on a CPU that is slow with it."""
    from transformers import AutoModelForCausalLM

    import longfocus

    if dtype is None:
        dtype = torch.bfloat16 if multiplies(torch.bfloat16, torch.device("cpu")) else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(shape), dtype=dtype)
    model.eval().requires_grad_(False)
    memory = longfocus.FocusConfig(
        window=shape.window,
        last_context_length=shape.window // 2,
        memory_layers=shape.memory_layers,
        memory_dtype=str(dtype).removeprefix("torch."),
    )
    logger = logging.getLogger("longfocus")
    level = logger.level
    # nobody will read its answers
    logger.setLevel(logging.ERROR)
    try:
        return longfocus.attach(model, memory)
    finally:
        logger.setLevel(level)


def stock_copy(model: Any, shape: Shape) -> Any:
    """The plain transformers model with the same weights."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        plain = AutoModelForCausalLM.from_config(_config(shape), dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.eval().requires_grad_(False)


def _config(shape: Shape) -> Any:
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.hidden * 43 // 16,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 2**21,
        "initializer_range": _SPREAD,
        "attn_implementation": "sdpa",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaConfig(**settings)


def random_ids(tokens: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))


def dictionary_ids(tokens: int, seed: int = 2026) -> tuple[task.Records, Tensor]:
    """Records of the dictionary task, and the tokens that define them."""
    records = task.draw_memory(tokens, seed)
    return records, task.memory_windows(records, 0, -(-tokens // task.WINDOW)).flatten()


def question_window(records: task.Records, seed: int = 2026) -> Tensor:
    """A window `[1, 256]` that asks for 25 of the records."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(records.keys), generator=generator)[: task.RECORDS_PER_WINDOW]
    asked = records.take(places)
    return task.to_windows(asked, task.QUESTION_MARK, len(places), task.WINDOW)


def is_there(model: str) -> bool:
    """Whether a model of this name or folder can be loaded."""
    from longfocus.hf.pretrained import resolve

    return (Path(resolve(model)) / "config.json").is_file()


def made_up_document(model: Any, tokens: int) -> DocumentMemory:
    """A document of the right size whose keys and values are random: for latencies only."""
    from longfocus.hf.layers import kv_heads_and_dim

    config = model.focus.config
    heads, dim = kv_heads_and_dim(model.config)
    dtype = model.dtype if config.memory_dtype is None else getattr(torch, config.memory_dtype)
    layers = {
        layer: Part(
            random_pairs(heads, tokens, dim, dtype, 2 * layer),
            random_pairs(heads, tokens, dim, dtype, 2 * layer + 1),
        )
        for layer in config.memory_layers
    }
    return DocumentMemory.of(
        name="made up",
        layers=layers,
        token_ids=torch.zeros(tokens, dtype=torch.long),
        read_with=ReadWith(config.positions, config.window),
    )


def random_pairs(heads: int, tokens: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    some = torch.randn(
        1, heads, min(tokens, REPEATED_KEYS), dim, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)
    pairs = torch.empty(1, heads, tokens, dim, dtype=dtype)
    for start in range(0, tokens, REPEATED_KEYS):
        stop = min(start + REPEATED_KEYS, tokens)
        pairs[:, :, start:stop] = some[:, :, : stop - start]
    return pairs
