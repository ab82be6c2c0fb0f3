"""The recipe of the code model: everything that decides what comes out, saved as `recipe.json`.

    find-1 .. find-4   d = 1: a current window sees its own previous window only; 1, 2, 4 lines per window
    compete            d > 1: it also sees up to 23 other windows full of pass-key lines with similar names
    refine             up to 47 other windows, after the memory layer's softmax was sharpened

The control is the same run with d = 1 in the last two phases: what the paper compares crossbatch with.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps of one kind. A step is a mixed batch (code, some windows with pass keys) or a dense one."""

    name: str
    steps: int
    until_accuracy: float = 1.0
    """The phase ends earlier when this share of questions (all five digits) is answered, smoothed over steps."""

    contexts: tuple[int, ...] = (1,)
    """Crossbatch dimensions d, one drawn per step; a mixed batch takes at most its number of documents."""

    dense_share: float = 0.6
    """Probability that a step is a dense batch: windows of pass-key lines only."""

    lines: tuple[int, ...] = (1,)
    """Pass-key lines per window of a dense batch, one drawn per step."""

    windows: int = 0
    """Previous windows of a dense batch; 0: as many as about 3500 tokens hold, all of them asked."""

    asked_windows: int = 0
    """Current windows of a dense batch (the first ones), where `windows` is given."""

    hard: float = 0.0
    """Probability that the names of a dense batch come from the same few words."""

    mixed_keys: int = 1
    """Most pass-key lines per window of a mixed batch."""

    temperature_rate: float = 1.0
    """Factor on the learning rate of the memory layer's q_norm and k_norm, where its temperature lives."""

    cool_down: float = 0.0
    """Share of the phase over which learning rates fall to zero."""


KIND = "code"

FIND = tuple(
    Phase(name=f"find-{lines}", steps=steps, until_accuracy=0.65, dense_share=0.75, lines=(lines,))
    for lines, steps in ((1, 400), (2, 200), (4, 100))
)
COMPETE = Phase(
    name="compete",
    steps=400,
    contexts=(1, 4, 24, 24, 24),
    dense_share=0.6,
    lines=(4, 8, 9),
    windows=24,
    asked_windows=16,
    hard=0.6,
    mixed_keys=4,
    temperature_rate=5.0,
    cool_down=0.6,
)
REFINE = Phase(
    name="refine",
    steps=400,
    contexts=(24, 48, 48),
    dense_share=0.6,
    lines=(4, 8, 9),
    windows=48,
    asked_windows=16,
    hard=0.8,
    mixed_keys=4,
    temperature_rate=5.0,
    cool_down=0.8,
)


@dataclass(frozen=True, kw_only=True)
class CodeRecipe:
    """Model, data and phases of one run."""

    seed: int = 0
    cpu_minutes: float = 29.0
    """Processor minutes of all threads to train the model; a slower machine makes fewer steps."""

    compete_share: float = 0.65
    """The compete phase ends at the latest when this share of the CPU minutes after the trunk is used."""

    trunk_share: float = 0.4
    """The find phases end at the latest when this share of the CPU minutes is used."""

    control: bool = False
    """d = 1 in the last phase too; everything else equal."""

    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 3
    head_size: int = 64
    vocabulary: int = 2048
    window: int = 256
    memory_layer: int = 2
    rope_theta: float = 10_000.0
    documents: int = 8
    """Documents of a mixed batch; half of them carry pass keys."""

    matrix_rate: float = 6e-3
    """Muon's learning rate for the matrices of the layers (matched to AdamW's update size)."""

    matrix_decay: float = 0.05
    other_rate: float = 4e-3
    """AdamW's learning rate for embeddings, output layer and norms."""

    warm_up_steps: int = 30
    digit_weight: float = 1.0
    """Weight of the loss on answer digits beside that on code."""

    sharpening: float = 2.0
    """Factor on the memory layer's softmax scores at the start of the last phase: the memory will be far larger than
    any in training. Chosen between 1, 1.5, 2 and 3 on a haystack of its own (docs/log.md)."""

    find: tuple[Phase, ...] = FIND
    compete: Phase = COMPETE
    refine: Phase = REFINE

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CodeRecipe":
        known = {name: value for name, value in values.items() if name != "kind"}
        known["find"] = tuple(_phase(phase) for phase in values["find"])
        known["compete"] = _phase(values["compete"])
        known["refine"] = _phase(values["refine"])
        return cls(**known)


def _phase(values: dict[str, Any]) -> Phase:
    known = dict(values)
    for name in ("contexts", "lines"):
        known[name] = tuple(values[name])
    return Phase(**known)
