"""How likely a model finds continuations of a prompt that is read once, and labels behind a question.

Padding would move the borders of windows, so that a score would depend on what else is in the batch: only continuations
of equal length stand side by side.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longfocus.hf.cache import FocusCache
from longfocus.inference.session import Session


class Scores(NamedTuple):
    """Of several continuations, in their order."""

    log_likelihoods: list[float]
    are_greedy: list[bool]
    """Whether each is what greedy decoding would write."""


def likeliest(session: Session, tokenizer: Any, question: str, labels: Sequence[str]) -> int:
    """The number of the label; each is scored by the likelihood of all its tokens behind the question."""
    found = likelihoods(session, tokenizer, question, labels)
    return max(range(len(found)), key=found.__getitem__)


@torch.no_grad()
def likelihoods(
    session: Session, tokenizer: Any, question: str, labels: Sequence[str]
) -> list[float]:
    """The logarithm for each label. Side by side stand no more than fill one window, their question included."""
    model, cache = session.model, session.cache()
    asked = tokenizer(question)["input_ids"]
    given = torch.tensor([asked], device=model.device)
    last = model(input_ids=given, past_key_values=cache, logits_to_keep=1).logits
    ends = [_behind(asked, question, label, tokenizer) for label in labels]
    equally_long: dict[int, list[int]] = defaultdict(list)
    for number, end in enumerate(ends):
        equally_long[len(end)].append(number)
    found: dict[int, float] = {}
    for length, numbers in equally_long.items():
        together = max(cache.config.window // (cache.local + length), 1)
        for start in range(0, len(numbers), together):
            part = numbers[start : start + together]
            tokens = torch.tensor([ends[number] for number in part], device=model.device)
            scores = score(model, cache, last, tokens)
            found.update(zip(part, scores.log_likelihoods, strict=True))
    return [found[number] for number in range(len(ends))]


def _behind(asked: list[int], question: str, label: str, tokenizer: Any) -> list[int]:
    """Tokens of a label where it stands; where it would change the last tokens of the question, those of it alone."""
    whole = tokenizer(question + label)["input_ids"]
    if whole[: len(asked)] == asked and len(whole) > len(asked):
        return whole[len(asked) :]
    return tokenizer(label, add_special_tokens=False)["input_ids"]


def score(
    model: Any,
    cache: FocusCache,
    last: Tensor,
    tokens: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Scores:
    """Of every row of `tokens` `[rows, tokens]` behind what `cache`, which stays as it is, has seen of one prompt.

    `last` are the logits `[1, 1, vocabulary]` of the first token. Windows are filled as in decoding, and logits made
    for one window at a time; their softmax is computed in `dtype`.
    """
    cache, rows = cache.fork(), len(tokens)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    last, start = last.expand(rows, -1, -1), 0
    total = torch.zeros(rows, dtype=torch.double)
    is_greedy = torch.ones(rows, dtype=torch.bool)
    window, kept = cache.config.window, cache.config.kept
    while start < tokens.shape[1]:
        # behind a full window, more than `kept` tokens would be cut as a prompt is
        part = tokens[:, start:][:, : max(window - cache.local, 0) or min(kept, window)]
        start += part.shape[1]
        # nothing is asked behind the last token
        read = part if start < tokens.shape[1] else part[:, :-1]
        logits = last
        if read.shape[1]:
            found = model(input_ids=read, past_key_values=cache).logits
            logits, last = torch.cat([last, found], 1), found[:, -1:]
        logits = logits[:, : part.shape[1]]
        is_greedy &= (logits.argmax(-1) == part).all(1).cpu()
        own = logits.log_softmax(-1, dtype=dtype).gather(2, part[..., None])
        total += own.double().sum((1, 2)).cpu()
    return Scores(total.tolist(), is_greedy.tolist())
