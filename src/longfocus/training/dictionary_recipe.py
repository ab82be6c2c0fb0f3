"""The recipe of the dictionary model: everything that decides what comes out, saved as `recipe.json`."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from longfocus.config import Positions
from longfocus.errors import LongFocusError
from longfocus.training.output import RECIPE_FILE

KIND = "dictionary"


@dataclass(frozen=True, kw_only=True)
class DictionaryRecipe:
    """Every choice of a training; `recipe.json` beside the result is enough to run it again."""

    seed: int = 0
    """Of weights and data."""
    cpu_minutes: float = 29.0
    """Processor minutes of all threads; on a slower machine the crossbatch stage is shortened to fit."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 128
    """One wide key per token tells more records apart than two of half the width, at the same memory."""
    memory_layers: tuple[int, ...] = (2,)
    rope_theta: float = 100.0
    """Windows are short: with 10,000 learning takes longer."""
    model: str | None = None
    """Another dictionary model to start from, in place of random weights; sizes are then its own."""
    positions: Positions = "none"
    """How memory layers see places."""
    max_positions: int | None = None
    """Positions, and longest window, of a model of random weights; None: 256."""
    rope_scaling: str | None = None
    """Scaled positions such as yarn:2, for a window longer than the model's positions."""

    curriculum: tuple[int, ...] = (3, 6, 12, 25)
    """Records per window of the stages with d = 1."""
    curriculum_rows: int = 64
    """A stage has as many documents as hold so many records, at least `curriculum_documents`."""
    curriculum_documents: int = 16
    curriculum_accuracy: tuple[float, float] = (0.95, 0.98)
    """Smoothed accuracy that ends a stage: all but the last, the last."""
    curriculum_steps: int = 1500
    """A curriculum stage ends after so many steps at the latest."""
    curriculum_rate: float = 3e-3
    """AdamW learning rate, reached after 50 steps."""

    curriculum_only: bool = False
    """End behind the curriculum: a model to start from."""

    documents: int = 32
    """Crossbatch stage: previous windows per step, all of them seen by every asking window (d)."""
    asking: int = 8
    """Documents that are asked: their current windows are computed too."""
    steps: int = 700
    alphabets: tuple[int, ...] = (60, 12, 8, 6)
    """Symbols per place of a key, one size chosen at random per step; small ones make hard negatives."""
    rate: float = 2e-3
    """AdamW learning rate after 20 steps, cooled down linearly to 0 over the last `cooldown` of the stage."""
    cooldown: float = 0.7
    temperature_factor: float = 0.3
    """Learning rate of q_norm and k_norm of the memory layers, as a multiple of `rate`, in the crossbatch stage."""
    contrast_steps: int = 450
    contrast_temperature: float = 1.0
    """Mean product of the weights of q_norm and k_norm in the memory layers, held in the last stage: scores of normed
    vectors reach sqrt(head_dim) times as much."""
    sharpen: float = 15.0
    """Factor on the scores of the memory layers, multiplied into their q_norm after training; chosen on other seeds
    than those of the evaluation."""

    def __post_init__(self) -> None:
        layers = self.memory_layers
        if (
            not layers
            or len(set(layers)) < len(layers)
            or not set(layers) < set(range(self.layers))
        ):
            raise LongFocusError(
                f"memory_layers must be some, not all, of the layers 0 to {self.layers - 1}, none twice. Got {layers}."
            )

        own = {"max_positions": self.max_positions, "rope_theta": self.rope_theta}
        for entry in fields(self):
            if self.model and entry.name in own and own[entry.name] != entry.default:
                raise LongFocusError(
                    f"{entry.name} is for random weights; those of {self.model} have their own. Got {own[entry.name]}. "
                    "Leave it out."
                )

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DictionaryRecipe":
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known - {"kind"})
        if values.get("kind") != KIND or unknown:
            raise LongFocusError(
                f"This is not a recipe of `longfocus train dictionary`: kind {values.get('kind')!r}, unknown "
                f"entries {unknown}. Choose the {RECIPE_FILE} that it wrote, or train into an empty directory."
            )
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        return cls(**entries)
