"""Which of several labels a model finds likeliest behind a question, with all that a session has in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longfocus.inference.session import Session

LABELS_TOGETHER = 16


def likeliest(session: Session, tokenizer: Any, question: str, labels: Sequence[str]) -> int:
    """The number of the label; each is scored by the likelihood of all its tokens behind the question."""
    asked = tokenizer(question)["input_ids"]
    ends = [_behind(asked, question, label, tokenizer) for label in labels]
    found: list[float] = []
    for start in range(0, len(ends), LABELS_TOGETHER):
        found += _log_likelihoods(session, asked, ends[start : start + LABELS_TOGETHER])
    return max(range(len(found)), key=found.__getitem__)


def _behind(asked: list[int], question: str, label: str, tokenizer: Any) -> list[int]:
    """Tokens of a label where it stands; where it would change the last tokens of the question, those of it alone."""
    whole = tokenizer(question + label)["input_ids"]
    if whole[: len(asked)] == asked and len(whole) > len(asked):
        return whole[len(asked) :]
    return tokenizer(label, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def _log_likelihoods(
    session: Session, asked: list[int], ends: Sequence[Sequence[int]]
) -> list[float]:
    # padding stands behind what is scored, where no token sees it
    longest = max(map(len, ends))
    rows = [[*asked, *end, *[0] * (longest - len(end))] for end in ends]
    given = torch.tensor(rows, device=session.model.device)
    logits: Tensor = session.model(input_ids=given, past_key_values=session.cache()).logits
    likelihoods = logits[:, len(asked) - 1 : -1].float().log_softmax(-1)
    own = likelihoods.gather(-1, given[:, len(asked) :, None])[..., 0]  # (label, token)
    is_of = torch.arange(longest) < torch.tensor([[len(end)] for end in ends])
    return own.cpu().masked_fill(~is_of, 0).sum(1).tolist()
