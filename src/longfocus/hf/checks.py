"""What the forward pass of an attached model refuses, before anything is computed or changed."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longfocus.config import FocusConfig
from longfocus.core.additional import AdditionalContexts
from longfocus.core.plans import check_circles, check_plan
from longfocus.core.windows import Piece
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.layers import vocabulary_size

if TYPE_CHECKING:
    from longfocus.hf.model import FocusMixin


def check_tokens(
    model: "FocusMixin", input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> int:
    """Number of tokens per row; raises LongFocusError on unusable input."""
    given = input_ids if input_ids is not None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise LongFocusError(
            "The model reads either token ids or embeddings. Got both or neither. Give exactly one of input_ids and "
            "inputs_embeds."
        )
    if given.dim() != (2 if input_ids is not None else 3) or given.shape[1] == 0:
        raise LongFocusError(
            "The input must hold at least one token: input_ids [batch, tokens] or inputs_embeds "
            f"[batch, tokens, hidden]. Got {tuple(given.shape)}."
        )
    if input_ids is not None and (input_ids.is_floating_point() or input_ids.dtype == torch.bool):
        raise LongFocusError(
            f"input_ids must be whole numbers. Got {input_ids.dtype}. Embeddings go to inputs_embeds."
        )
    if input_ids is not None and input_ids.numel():
        vocabulary = vocabulary_size(model)
        low, high = (int(t) for t in input_ids.aminmax())
        if low < 0 or high >= vocabulary:
            raise LongFocusError(
                f"input_ids must lie in 0..{vocabulary - 1}, the model's vocabulary. Got {low}..{high}. "
                "Was the text tokenized with another model's tokenizer?"
            )
    return given.shape[1]


def check_shapes(
    rows: int,
    tokens: int,
    position_ids: Tensor | None,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    last_context_length: int | None,
) -> None:
    """Refuse arguments of `forward` that do not belong to `tokens` tokens of `rows` rows."""
    if position_ids is not None and tuple(position_ids.shape) not in ((rows, tokens), (1, tokens)):
        raise LongFocusError(
            f"position_ids must be [{rows}, {tokens}], like the input. Got {list(position_ids.shape)}. "
            "Leave them out for 0, 1, 2, ..."
        )
    if labels is not None and tuple(labels.shape) != (rows, tokens):
        raise LongFocusError(
            f"labels must be [{rows}, {tokens}], one per input token: they are shifted inside. "
            f"Got {list(labels.shape)}. Mark tokens without loss by -100."
        )
    if labels is not None and isinstance(logits_to_keep, int) and logits_to_keep:
        raise LongFocusError(
            f"labels need the logits of all tokens. Got logits_to_keep={logits_to_keep}. Leave it out."
        )
    if last_context_length is not None and (
        not isinstance(last_context_length, int) or last_context_length < 1
    ):
        raise LongFocusError(
            "last_context_length must be a whole number of at least 1 token, the one that is answered. Got "
            f"{last_context_length!r}. Leave it out for the model's own."
        )


def check_contexts(
    given: Tensor | AdditionalContexts, mask: Any, rows: int, tokens: int
) -> AdditionalContexts:
    """The contexts of a crossbatch, checked; real tokens are those of the attention mask unless they are given."""
    if isinstance(given, AdditionalContexts):
        contexts = given
        check_plan(contexts.plan, rows, first=contexts.first_row, total=contexts.all_rows)
    else:
        check_plan(given, rows)
        contexts = AdditionalContexts(given)
    valid = mask if contexts.valid is None else contexts.valid
    if valid is None:
        return contexts
    if not isinstance(valid, Tensor) or valid.shape != (rows, tokens):
        got = tuple(valid.shape) if isinstance(valid, Tensor) else type(valid).__name__
        raise LongFocusError(
            f"The attention_mask of a crossbatch must be [{rows}, {tokens}]. Got {got}."
        )
    return replace(contexts, valid=valid.bool())


def check_own_mask(mask: Any, rows: int, tokens: int) -> None:
    """Refuse a 2-dimensional mask that is not that of one window."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and tuple(mask.shape) != (rows, tokens):
        raise LongFocusError(
            f"attention_mask must be [{rows}, {tokens}], like the input. Got {list(mask.shape)}. "
            "Leave it out where nothing is padded."
        )


def check_crossbatch(tokens: int, contexts: AdditionalContexts, config: FocusConfig) -> None:
    """Refuse rows that do not fit a window, and a plan in which they would see their own future."""
    if tokens > config.window:
        raise LongFocusError(
            f"A crossbatch row must fit the window of {config.window} tokens. Got {tokens}. "
            "Cut the document into windows and let later rows list earlier ones in the plan."
        )
    # of several processes each knows its own part of the plan only
    if contexts.group is None:
        check_circles(contexts.plan, len(config.memory_layers))


def check_stay(memory: FocusCache, config: FocusConfig, use_cache: bool) -> None:
    if not use_cache and config.split == "longllama" and memory.local:
        raise LongFocusError(
            "use_cache=False with a window that is not empty is not defined by the published rules "
            "(split='longllama'). Pass use_cache=True, or use split='when_needed'."
        )


def check_attentions(
    model: "FocusMixin", memory: FocusCache, pieces: list[Piece], shared: dict[str, Any]
) -> None:
    asked = shared.get("output_attentions") or getattr(model.config, "output_attentions", False)
    if asked and (len(pieces) > 1 or memory.has_memory()):
        raise LongFocusError(
            "output_attentions cannot show attention to a memory, which has no matrix of weights. Pass focus_trace="
            "to see where memory layers looked, or Answer.sources."
        )


def check_router_loss(
    model: "FocusMixin", pieces: list[Piece], shared: dict[str, Any], labels: Tensor | None
) -> None:
    asked = shared.get("output_router_logits", getattr(model.config, "output_router_logits", False))
    if asked and labels is not None and len(pieces) > 1:
        raise LongFocusError(
            f"The router loss of a mixture of experts is not defined over {len(pieces)} windows. Train on single "
            "windows with crossbatch (additional_contexts), or pass output_router_logits=False."
        )
