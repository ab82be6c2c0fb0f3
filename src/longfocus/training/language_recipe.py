"""The recipe of the language models: one base, and from it the same tokens by every method of the paper's comparison.

    base               windows of 256 tokens, a memory layer without positions that sees the window only
    fot                crossbatch: a window sees the windows before it in the batch, a few of them first, then up to 63,
                       those of its own document and those of others
    memorizing         Memorizing Transformer: a real memory of its own document without gradient, and a gate
    fot_d1             crossbatch without negatives: only windows of its own document, up to 15
    transformer_xl     no memory; every layer sees the window before, without gradient
    plain              no memory; rows of 16 windows

and the paper's ablations, which are asked for by name:

    gate               as fot_d1, with the Memorizing Transformer's gate
    no_gradient        as fot_d1, where the windows before take no gradient
    memorizing_joint   as memorizing, in one softmax
    w1, w2             as fot_d1, where a window sees one or two windows before it

`LanguageRecipe` makes the recipes of `train scratch` and `train continue` from these. Nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from longfocus.errors import LongFocusError
from longfocus.training.recipe import ContinueRecipe, ScratchRecipe

KIND = "language"

Variant = Literal[
    "fot",
    "memorizing",
    "fot_d1",
    "transformer_xl",
    "plain",
    "gate",
    "no_gradient",
    "memorizing_joint",
    "w1",
    "w2",
]
VARIANTS: tuple[Variant, ...] = ("fot", "memorizing", "fot_d1", "transformer_xl", "plain")
ABLATIONS: tuple[Variant, ...] = ("gate", "no_gradient", "memorizing_joint", "w1", "w2")
ALL_VARIANTS = VARIANTS + ABLATIONS
"""In the order in which they are trained."""


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """Model, data and steps of a base and its variants."""

    seed: int = 0
    """Of weights and of the order of documents; the data are the same for all seeds."""
    vocabulary: int = 2048
    max_package_bytes: int = 8_000_000
    """Of a larger package, so much is read."""
    recall_documents: int = 400
    """Documents with lines to be recalled (`recall_documents.py`), beside those that all models are trained on."""
    hidden_size: int = 192
    layers: int = 5
    heads: int = 3
    head_dim: int = 64
    window: int = 256
    memory_layer: int = 2
    """The one in the middle. One on purpose: its keys do not depend on the memory, so reading is linear."""

    cpu: bool = True
    """Do not use a GPU."""

    base_rows: int = 16
    """Windows of a step of the base."""
    base_steps: int = 3200
    base_rate: float = 5e-3
    """Learning rate, of matrices by Muon and of the rest by AdamW."""
    rows: int = 64
    """Windows of a step of every variant."""
    windows: int = 16
    """Consecutive windows that a document gives to a crossbatch step; what `plain` has as one row."""
    steps: int = 220
    """Of every variant."""
    rate: float = 2.5e-3
    reach_windows: int = 16
    """What the Memorizing Transformer remembers in training."""
    temperature_rate: float = 5.0
    """Factor on the learning rate of the memory layer's q_norm and k_norm, where its temperature lives."""

    def __post_init__(self) -> None:
        if self.base_steps < 1 or self.steps < 1:
            raise LongFocusError(
                f"There must be at least 1 step. Got {self.base_steps} for the base and {self.steps} for the variants. "
                "Leave them out for those of the published run."
            )

    def base(self, data: Path) -> ScratchRecipe:
        """The base: memory attached and never looked into."""
        return ScratchRecipe(
            **_shared(self, data),
            contexts="1/1(0,0)",
            d="1",
            tokenizer=str(data / "tokenizer"),
            vocabulary=self.vocabulary,
            hidden_size=self.hidden_size,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.head_dim,
            max_positions=self.windows * self.window,
            memory_layers=(self.memory_layer,),
            window=self.window,
            positions="none",
            batch_size=self.base_rows,
            max_steps=self.base_steps,
            learning_rate=self.base_rate,
            warmup_steps=min(100, self.base_steps // 10),
            seed=self.seed,
        )

    def variant(self, name: Variant, data: Path, base: Path) -> ContinueRecipe:
        """A variant: the base's weights, the same documents, as many tokens, its own method."""
        shared: dict[str, Any] = {
            **_shared(self, data),
            "model": str(base),
            "min_tokens": (self.windows * self.window,),
            "max_steps": self.steps,
            "learning_rate": self.rate,
            "warmup_steps": min(20, self.steps // 10),
            # documents in another order than the base saw them
            "seed": self.seed + 1,
        }
        return ContinueRecipe(**shared | self._method(name))

    def _method(self, name: Variant) -> dict[str, Any]:
        small, large = self.windows // 2, self.rows - 1
        until = max(1, self.steps // 5)
        row = self.windows * self.window
        methods: dict[Variant, dict[str, Any]] = {
            "fot": {
                "contexts": f"published(packing={self.windows})",
                "d": f"{small} until step {until} then {self.windows},{large // 2},{large}",
                "temperature_rate": self.temperature_rate,
                "batch_size": self.rows,
            },
            "memorizing": {**self._real_memory(), "merge": "gate"},
            "fot_d1": self._own_windows(self.windows - 1),
            "transformer_xl": {
                "method": "transformer_xl",
                "window": self.window,
                "batch_size": self.rows,
            },
            "plain": {
                "method": "plain",
                "window": row,
                "batch_size": self.rows // self.windows,
            },
            "gate": {**self._own_windows(self.windows - 1), "merge": "gate"},
            "no_gradient": {**self._own_windows(self.windows - 1), "detach_contexts": True},
            "memorizing_joint": {**self._real_memory(), "merge": "joint"},
            "w1": self._own_windows(1),
            "w2": self._own_windows(2),
        }
        return methods[name]

    def _own_windows(self, most: int) -> dict[str, Any]:
        """Crossbatch without negatives: a window sees at most so many windows before it, of its own document."""
        return {
            "contexts": " ".join(
                f"1/{self.windows}({min(n, most)},0)" for n in range(self.windows)
            ),
            "d": "1",
            "temperature_rate": self.temperature_rate,
            "batch_size": self.rows,
        }

    def _real_memory(self) -> dict[str, Any]:
        return {
            "method": "real_memory",
            "reach": self.reach_windows * self.window,
            "temperature_rate": self.temperature_rate,
            "batch_size": self.rows,
        }

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self)}


def large_recipe() -> LanguageRecipe:
    """The same on a GPU: ten times the weights, some thirty times the tokens."""
    return LanguageRecipe(
        vocabulary=4096,
        max_package_bytes=60_000_000,
        cpu=False,
        hidden_size=512,
        layers=9,
        heads=8,
        window=512,
        memory_layer=4,
        base_rows=128,
        base_steps=8000,
        base_rate=3e-3,
        rows=256,
        steps=1200,
        rate=1.5e-3,
    )


def _shared(recipe: LanguageRecipe, data: Path) -> dict[str, Any]:
    """What holds for the base and for all variants."""
    return {
        "data": (str(data / "train"),),
        "kind": "text",
        "optimizer": "muon",
        "weight_decay": 0.05,
        "scheduler": "linear",
        "save_steps": 50,
        "cpu": recipe.cpu,
    }
