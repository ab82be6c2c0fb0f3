"""Generating answers, and what is read off the arguments of `generate`, which may come in a config or otherwise."""

from collections.abc import Mapping
from typing import Any

from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.inference.answer import until_end
from longfocus.inference.prompts import Prompts


def asked(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """A setting: given by itself, in a given config, or the model's own."""
    configs = (kwargs.get("generation_config"), model.generation_config)
    found = (getattr(config, name, None) for config in configs)
    given = next((value for value in found if value is not None), None)
    return kwargs.get(name, given)


def refuse_several(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise LongFocusError for what cannot be turned into one answer a question."""
    several = (asked(model, kwargs, "num_return_sequences") or 1) != 1
    if several or asked(model, kwargs, "return_dict_in_generate"):
        raise LongFocusError(
            "There is one answer for each question. Got num_return_sequences or return_dict_in_generate. "
            "Use Session.generate, which returns what generate does."
        )


def shaping(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes the memory of a prompt."""
    return {name: kwargs[name] for name in ("last_context_length",) if name in kwargs}


def end_tokens(model: Any, kwargs: Mapping[str, Any]) -> Any:
    """The token or tokens that end an answer, as `generate` takes them."""
    own = kwargs.get("generation_config") or model.generation_config
    return kwargs.get("eos_token_id", own.eos_token_id)


def defaults(model: Any, prompts: Prompts) -> dict[str, Any]:
    """A pad token where the model has none, which `generate` would warn about at every call."""
    return {} if model.generation_config.pad_token_id is not None else {"pad_token_id": prompts.pad}


def generated(
    model: Any,
    prompts: Prompts,
    cache: FocusCache,
    rows: list[list[int]],
    max_new_tokens: int,
    kwargs: Mapping[str, Any],
) -> list[list[int]]:
    """New tokens of every row of token ids, up to the one that ends its answer; greedy unless `kwargs` say else."""
    given = prompts.padded(rows, model.device)
    # a given config says itself whether tokens are drawn
    greedy = {} if "generation_config" in kwargs else {"do_sample": False}
    settings = {**greedy, **defaults(model, prompts), **kwargs}
    sequences = model.generate(
        **given, past_key_values=cache, max_new_tokens=max_new_tokens, **settings
    )
    new = sequences[:, given["input_ids"].shape[1] :].tolist()
    return [until_end(ids, end_tokens(model, kwargs)) for ids in new]
