"""Published LongLLaMA checkpoints (`model_type: longllama`), read as the stock Llama models that they are.

Their weights have Llama's names; what is theirs are six configuration fields. Nothing of the code that such a
checkpoint points to (`auto_map`) is needed or run.
"""

from typing import Any

from longfocus.config import FocusConfig

MODEL_TYPE = "longllama"

# The published defaults where a configuration is silent.
_LAST_CONTEXT_LENGTH = 1024
_OWN_FIELDS = {
    "auto_map",
    "gradient_checkpoint_every_ith",
    "last_context_length",
    "mem_attention_grouping",
    "mem_dtype",
    "mem_layers",
    "mem_positionals",
    "torch_attention",
}


def to_llama(published: dict[str, Any]) -> tuple[dict[str, Any], FocusConfig]:
    """A Llama configuration and the memory of a published `config.json`.

    `mem_attention_grouping` and `torch_attention` choose among equal computations there and are dropped.
    """
    llama = {name: value for name, value in published.items() if name not in _OWN_FIELDS}
    llama |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    focus = FocusConfig(
        memory_layers=tuple(published.get("mem_layers") or ()),
        window=published.get("max_position_embeddings", 2048),
        last_context_length=published.get("last_context_length") or _LAST_CONTEXT_LENGTH,
        positions="window_start" if published.get("mem_positionals", True) else "none",
        memory_dtype=published.get("mem_dtype", "bfloat16"),
        split="longllama",
    )
    return llama, focus
