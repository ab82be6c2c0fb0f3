"""Before a pair is timed: do ours and the peer compute the same thing? A ratio of different things means nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.evaluation.speed import models
from longfocus.evaluation.speed.peers.full import Full
from longfocus.evaluation.speed.peers.published import Published
from longfocus.evaluation.speed.settings import Shape

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.08}
"""Largest error that is taken for rounding: root mean square, as a share of that of the logits."""
WINDOWS = 3


class Unequal(LongFocusError):
    """A fast path and what it is compared with disagree."""


def check_same(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> float:
    """The error of ours as a share of theirs. Raises Unequal above `tolerance`."""
    theirs = theirs.float()
    error = ((ours.float() - theirs).square().mean() / theirs.square().mean()).sqrt().item()
    if not error <= tolerance:
        raise Unequal(
            f"{what} do not compute the same thing: they differ by {error:.2g} of the result, where {tolerance:g} is "
            "allowed for rounding. No ratio is printed. Repair what is wrong before timing it."
        )
    return error


def our_logits(model: Any, ids: Tensor, question: Tensor) -> Tensor:
    """Logits of a question `[1, tokens]` with `ids` in memory."""
    import longfocus

    document = longfocus.read_document(model, None, ids)
    cache = longfocus.FocusCache(model, documents=[document])
    with torch.inference_mode():
        return model(question, past_key_values=cache).logits


def check_published(shape: Shape, dtypes: Sequence[torch.dtype] = tuple(TOLERANCES)) -> None:
    """Memory of several windows, then a question: the published rules give our logits."""
    ids = models.random_ids(WINDOWS * shape.window, shape.vocabulary)
    question = models.random_ids(min(shape.window, 64), shape.vocabulary, seed=1)[None]
    for dtype in dtypes:
        model = models.random_model(shape, dtype)
        ours = our_logits(model, ids, question)
        for is_eager in (False, True):
            peer = Published(model, is_eager=is_eager)
            theirs = peer.logits(question, peer.read(ids))
            name = "LongFocus and the published rules" + (", eager," if is_eager else "")
            check_same(ours, theirs, TOLERANCES[dtype], f"{name} in {dtype}")


def check_full(shape: Shape, dtypes: Sequence[torch.dtype] = tuple(TOLERANCES)) -> None:
    """Within one window a memory is not needed, and full attention gives our logits."""
    ids = models.random_ids(shape.window // 2, shape.vocabulary)
    question = models.random_ids(shape.window // 4, shape.vocabulary, seed=1)[None]
    for dtype in dtypes:
        model = models.random_model(shape, dtype)
        with torch.inference_mode():
            ours = model(torch.cat([ids[None], question], 1)).logits[:, len(ids) :]
        peer = Full(models.stock_copy(model, shape))
        theirs = peer.logits(question, peer.read(ids))
        check_same(ours, theirs, TOLERANCES[dtype], f"LongFocus and full attention in {dtype}")
