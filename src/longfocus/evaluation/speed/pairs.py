"""Rows of ours against a peer, made from their timings."""

from dataclasses import replace

from longfocus.evaluation.speed.rows import Row
from longfocus.evaluation.speed.searches import Mass
from longfocus.evaluation.speed.timing import Timing


def short(tokens: int) -> str:
    """65536 as 64k."""
    for unit, size in (("m", 1024**2), ("k", 1024)):
        if tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def pair(
    row: Row,
    timings: dict[str, Timing],
    *,
    mass: Mass | None = None,
    peer_mass: Mass | None = None,
    is_inverse: bool = False,
    note: str = "",
) -> Row:
    """The row with the times of its `ours` and its `peer`; `is_inverse`: the ratio is ours / theirs."""
    own = timings[row.ours]
    other = timings[row.peer] if row.peer else Timing(())
    ratio = None
    if own.median and other.median:
        ratio = own.median / other.median if is_inverse else other.median / own.median
    notes = [
        f"{name} not measured: {timing.why_not}"
        for name, timing in ((row.ours, own), (row.peer, other))
        if timing.why_not
    ]
    return replace(
        row,
        ours_seconds=own.median,
        peer_seconds=other.median,
        ratio=ratio,
        retained_mass=None if mass is None else mass.mean,
        retained_mass_least=None if mass is None else mass.least,
        peer_retained_mass=None if peer_mass is None else peer_mass.mean,
        repetitions=len(own.seconds) or len(other.seconds),
        note="; ".join([*notes, note] if note else notes),
    )


def absent(what: str, model: str, tokens: int, why: str) -> Row:
    """A cell that says why it is empty."""
    return Row(what=what, model=model, tokens=tokens, ours="", note=f"not measured: {why}")
