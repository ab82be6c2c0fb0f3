"""Which rows of a training batch see which others: plans by name, as they are given on a command line.

    paper                     the last window of a document sees its previous one and those of d-1 other documents
    paper(w=2)                the same with two previous windows each
    published(packing=2)      the published code's: each row sees the d rows before it; also `stepping`
    1/4(0,0) 1/4(1,1) ...     LongLLaMA's segments: share(positives, negatives)
    1/2 paper + 1/2 published(packing=2)       drawn per step

`Contexts.draw` gives the plan of one step, and which of its entries are positives.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from longfocus.core.plans import (
    NONE,
    Segment,
    packed_plan,
    published_plan,
    segment_windows,
    segments_plan,
)
from longfocus.errors import LongFocusError


class StepPlan(NamedTuple):
    """Who sees whom in one step."""

    plan: Int[Tensor, "rows contexts"]
    is_positive: Bool[Tensor, "rows contexts"]
    """Entries that are windows of the row's own document."""


@dataclass(frozen=True)
class Contexts:
    """One kind of plan, or several to draw from."""

    name: str
    """As `parse_contexts` reads it."""
    windows: int
    """Consecutive windows that every document gives to a batch (packing of `document_rows`)."""
    uses_d: bool
    choices: tuple[tuple[Fraction, Callable[[int, int], Tensor]], ...]
    """Shares, and what makes a plan from the number of documents and d."""

    def draw(self, rows: int, d: int, generator: torch.Generator) -> StepPlan:
        """The plan of one step with `rows` rows. Raises LongFocusError for a plan that is impossible with so many."""
        if rows % self.windows:
            raise LongFocusError(
                f"A batch of {rows} rows cannot hold documents of {self.windows} windows each, which "
                f"{self.name!r} needs. Choose a multiple of {self.windows}."
            )
        ends = torch.tensor([float(share) for share, _ in self.choices]).cumsum(0)[:-1]
        # one number also where there is no choice, so that later ones do not depend on the plan
        chosen = int(torch.bucketize(torch.rand((), generator=generator), ends, right=True))
        plan = self.choices[chosen][1](rows // self.windows, d)
        return StepPlan(plan, positives(plan, self.windows))


def positives(plan: Int[Tensor, "rows contexts"], windows: int) -> Bool[Tensor, "rows contexts"]:
    """Entries of a plan that are windows of the row's own document, which gives `windows` consecutive rows."""
    own = torch.arange(len(plan)) // windows
    return (plan != NONE) & (plan // windows == own[:, None])


def parse_contexts(text: str) -> Contexts:
    """Read a plan from its name. Raises LongFocusError if it is not one."""
    parts = [part.strip() for part in text.split("+")]
    if len(parts) == 1:
        return _parse_one(text.strip())
    found: list[tuple[Fraction, Contexts]] = []
    for part in parts:
        match = re.fullmatch(r"([0-9./]+)\s+(\S.*)", part)
        if match is None:
            raise _unknown(text)
        found.append((_share(text, match[1]), _parse_one(match[2])))
    if sum(share for share, _ in found) != 1 or len({c.windows for _, c in found}) != 1:
        raise LongFocusError(
            f"The shares of a mixture must add up to 1, and all its plans must use equally many windows of a document. "
            f"Got {text!r}. An example: '1/2 paper + 1/2 published(packing=2)'."
        )
    choices = tuple((share, contexts.choices[0][1]) for share, contexts in found)
    return Contexts(text, found[0][1].windows, any(c.uses_d for _, c in found), choices)


def _parse_one(text: str) -> Contexts:
    if re.match(r"[0-9./]+\s*\(", text):
        return _segments(text)
    match = re.fullmatch(r"(paper|published)(?:\((.*)\))?", text)
    if match is None:
        raise _unknown(text)
    if match[1] == "paper":
        windows = _options(text, match[2], {"w"}).get("w", 1) + 1
        return _only(text, windows, True, lambda n, d: packed_plan(n, windows=windows, d=d))
    options = _options(text, match[2], {"packing", "stepping"})
    packing, stepping = options.get("packing", 1), "stepping" in options
    return _only(text, packing, True, lambda n, d: _published(n * packing, d, stepping, packing))


def _options(text: str, given: str | None, names: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in given.split(",") if given else ():
        match = re.fullmatch(r"\s*(?:(w|packing)\s*=\s*0*([1-9][0-9]*)|(stepping))\s*", part)
        name = match and (match[1] or match[3])
        if match is None or name not in names or name in found:
            raise _unknown(text)
        found[name] = int(match[2] or 1)
    return found


def _only(text: str, windows: int, uses_d: bool, make: Callable[[int, int], Tensor]) -> Contexts:
    return Contexts(text, windows, uses_d, ((Fraction(1), make),))


def _published(rows: int, d: int, stepping: bool, packing: int) -> Tensor:
    if d >= rows:
        raise LongFocusError(
            f"d={d} is beyond the batch: at most {rows - 1} rows come before any of its {rows} rows. Use a smaller "
            "d or more rows."
        )
    return published_plan(rows, context_range=d, stepping=stepping, packing=packing)


def _segments(text: str) -> Contexts:
    pattern = r"([0-9./]+)\s*\(\s*([0-9]+)\s*,\s*([0-9]+)\s*\)"
    if re.sub(pattern, "", text).strip():
        raise _unknown(text)
    segments = [
        Segment(_share(text, share), int(positives), int(negatives))
        for share, positives, negatives in re.findall(pattern, text)
    ]
    windows = segment_windows(segments)
    return _only(text, windows, False, lambda n, d: segments_plan(n, segments))


def _share(text: str, share: str) -> Fraction:
    try:
        return Fraction(share)
    except (ValueError, ZeroDivisionError):
        raise _unknown(text) from None


def _unknown(text: str) -> LongFocusError:
    return LongFocusError(
        f"{text!r} is not a plan of contexts. Allowed: 'paper', 'paper(w=2)', 'published(packing=2,stepping)', "
        "segments such as '1/4(0,0) 1/4(1,1) 1/4(2,1) 1/4(3,0)', or a mixture such as "
        "'1/2 paper + 1/2 published(packing=2)'. See docs/training.md."
    )


def draw_picture(step: StepPlan, windows: int, most_rows: int = 48) -> str:
    """Who sees whom as text: a line per row, a column per row that is seen.

    `#` the own window, `+` the same document (positive), `-` another document (negative), `.` not seen. A line
    is drawn between documents. At most `most_rows` rows are shown.
    """
    rows = len(step.plan)
    shown = min(rows, max(windows, most_rows // windows * windows))
    lines = []
    for row in range(shown):
        marks = ["."] * shown
        marks[row] = "#"
        for seen, positive in zip(
            step.plan[row].tolist(), step.is_positive[row].tolist(), strict=True
        ):
            if 0 <= seen < shown:
                marks[seen] = "+" if positive else "-"
        groups = ["".join(marks[at : at + windows]) for at in range(0, shown, windows)]
        counts = (int(step.is_positive[row].sum()), int((step.plan[row] != NONE).sum()))
        lines.append(
            f"{row:5}  {'|'.join(groups)}  {counts[0]} positive, {counts[1] - counts[0]} negative"
        )
        if row % windows == windows - 1 and row + 1 < shown and windows > 1:
            lines.append(" " * 7 + "+".join("-" * len(group) for group in groups))
    if shown < rows:
        lines.append(f"  ... {rows - shown} more rows and columns")
    return "\n".join(lines)
