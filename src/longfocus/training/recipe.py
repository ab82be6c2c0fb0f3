"""Recipes of `longfocus train continue | instruct | scratch`: everything that decides what comes out, as `recipe.json`.

Nothing here imports torch, so that `--help` answers at once. What a recipe means is in `model.py` (which weights),
`run.py` (which rows and method) and `trainer.py` (how weights change).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from longfocus.config import Merge, Positions
from longfocus.errors import LongFocusError
from longfocus.training.sources import Kind, Source

SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
"""Learning rate schedules of transformers that need nothing but the numbers of steps."""

MethodName = Literal["crossbatch", "plain", "transformer_xl", "real_memory"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all three have in common."""

    data: tuple[str, ...]
    """Folders, files (text, code, .jsonl, .parquet) or Hugging Face datasets (with --kind dataset)."""
    weights: tuple[float, ...] = ()
    """Share of each of them in the mixture, by tokens; leave it out for their sizes."""
    kind: Kind | None = None
    """What the data are: text, code (a folder is one document), jsonl, parquet or dataset; found out if left out."""
    text_field: str | None = None
    """Field of jsonl, parquet and datasets with the text, or with chat messages."""
    min_tokens: tuple[int, ...] = (1,)
    """Shorter documents are left out; one number for all of --data, or one for each."""
    stream: bool = False
    """Tokenise while training and keep nothing."""

    method: MethodName = "crossbatch"
    """crossbatch (FoT); or a baseline: plain long rows, transformer_xl, real_memory (with --merge gate: the Memorizing
    Transformer)."""
    contexts: str = "paper"
    """Who sees whom: paper, paper(w=2), published(packing=2), or segments such as "1/4(0,0) 1/4(1,1) ..."."""
    d: str = "2"
    """Contexts per row: a number, some to draw from ("2,128"), or switches ("1 until 98% then 128")."""
    detach_contexts: bool = False
    """Keys and values of other rows take no gradient: the paper's ablation of differentiable ones."""
    share_negatives: bool = False
    """With several processes: rows may see rows of all of them."""
    memory_layers: tuple[int, ...] = ()
    """Layers with memory; left out: those of the model, else at one, two and three quarters of its depth."""
    window: int | None = None
    """Tokens of a window; left out: the model's own, at most 2048."""
    positions: Positions | None = None
    """How memory layers see places: window_start (LongLLaMA), none (the paper's small models), true; left out: the
    model's own, else window_start."""
    merge: Merge | None = None
    """joint: one softmax over window and memory. gate: the Memorizing Transformer's; left out: the model's own, else
    joint."""
    mask_documents: bool = False
    """In its own window a token does not see an earlier document (crossbatch and plain)."""
    reach: int | None = None
    """real_memory: tokens that a row remembers; left out: 32 windows."""
    rope_scaling: str | None = None
    """Scaled positions such as linear:4, dynamic:2 or yarn:4, for windows longer than the model's positions: those that
    its config.json names (max_position_embeddings). If it has seen fewer, change the number there first."""

    batch_size: int = 8
    """Windows per micro-batch and process."""
    accumulation: int = 1
    """Micro-batches per step."""
    max_steps: int | None = None
    """Steps; left out: as many as --epochs needs."""
    epochs: int = 1
    """Passes over the data where --max-steps is left out."""
    learning_rate: float = 2e-5
    warmup_steps: int = 0
    scheduler: str = "constant_with_warmup"
    """constant, constant_with_warmup, cosine, cosine_with_restarts, inverse_sqrt, linear or polynomial."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of the layers (and AdamW for the rest): for models from random weights."""
    temperature_rate: float = 1.0
    """With muon: factor on the learning rate of the memory layers' q_norm and k_norm, where their temperature lives."""
    sharpen: float = 1.0
    """Factor on the scores of memory layers before training begins: a softmax learnt in small batches is too soft for a
    large memory."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lora_rank: int | None = None
    """Train low-rank adapters of this rank (PEFT) instead of all weights; they are merged at the end."""
    quantize: Literal["4bit"] | None = None
    """Load the frozen weights in 4 bits (QLoRA; needs --lora-rank, bitsandbytes and a GPU)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights while training."""
    bf16: bool = True
    """Compute in bfloat16; on a CPU only if it has instructions for it, without which float32 is many times faster."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    save_steps: int = 200
    """Steps between two checkpoints."""
    report_to: tuple[str, ...] = ()
    """Trackers such as tensorboard; metrics.jsonl is always written."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over processes (FSDP2)."""
    cpu: bool = False
    """Do not use a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_data()
        self._check_numbers()
        self._check_adapters()

    def _check_data(self) -> None:
        if not self.data:
            raise LongFocusError("There is nothing to train on. Give --data with a folder or file.")
        if self.weights and len(self.weights) != len(self.data):
            raise LongFocusError(
                f"--weights must give one number per entry of --data. Got {len(self.weights)} for "
                f"{len(self.data)}. Leave it out to mix by size."
            )
        if len(self.min_tokens) not in (1, len(self.data)):
            raise LongFocusError(
                f"--min-tokens must give one number, or one per entry of --data. Got {len(self.min_tokens)} for "
                f"{len(self.data)}."
            )
        if self.max_steps is None and self.stream:
            raise LongFocusError(
                "How much a streamed source holds is not known beforehand. Give --max-steps."
            )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "accumulation", "epochs", "save_steps", "max_steps", "reach"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LongFocusError(f"{name} must be at least 1. Got {value}.")
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "temperature_rate",
        ):
            if not getattr(self, name) >= 0:
                raise LongFocusError(f"{name} must not be negative. Got {getattr(self, name)}.")
        if not self.sharpen > 0:
            raise LongFocusError(f"sharpen must be more than 0. Got {self.sharpen}.")
        if self.sharpen != 1 and self.method in ("plain", "transformer_xl"):
            raise LongFocusError(
                f"{self.method} has no memory layers to sharpen. Got sharpen={self.sharpen}. Leave it out."
            )
        if self.scheduler not in SCHEDULERS:
            raise LongFocusError(
                f"scheduler={self.scheduler!r} is not known. Allowed: {', '.join(SCHEDULERS)}."
            )

    def _check_adapters(self) -> None:
        if self.quantize and not self.lora_rank:
            raise LongFocusError(
                "Weights in 4 bits cannot be trained themselves. Give --lora-rank for adapters beside them."
            )
        if self.optimizer == "muon" and (self.lora_rank or self.fsdp):
            raise LongFocusError(
                "Muon needs whole matrices. Got --lora-rank or --fsdp with it. Leave these out, or use --optimizer "
                "adamw."
            )
        if self.optimizer != "muon" and self.temperature_rate != 1:
            raise LongFocusError(
                f"Only muon has a rate of its own for the temperature. Got temperature_rate={self.temperature_rate} "
                f"with {self.optimizer}. Give --optimizer muon, or leave it out."
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise LongFocusError(f"lora_rank must be at least 1. Got {self.lora_rank}.")
        if self.lora_rank and self.merge == "gate":
            raise LongFocusError(
                "Gates are weights of their own, which LoRA checkpoints do not hold. Train all weights (no "
                "--lora-rank), or use --merge joint."
            )

    @property
    def sources(self) -> list[Source]:
        weights = self.weights or (None,) * len(self.data)
        least = self.min_tokens * len(self.data) if len(self.min_tokens) == 1 else self.min_tokens
        return [
            Source(
                path,
                kind=self.kind,
                weight=weight,
                min_tokens=tokens,
                text_field=self.text_field,
                stream=self.stream,
                name=path if len(self.data) > 1 else None,
            )
            for path, weight, tokens in zip(self.data, weights, least, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"kind_of_training": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ContinueRecipe(Recipe):
    """Continued pre-training of any supported model, so that its memory works."""

    model: str
    """A folder or hub id of a Hugging Face causal language model, with memory or without."""
    tokenizer: str | None = None
    """Another folder or hub id for the tokenizer; left out: the model's."""


@dataclass(frozen=True, kw_only=True)
class InstructRecipe(ContinueRecipe):
    """Instruction and chat tuning: a conversation lies partly in the window and partly in memory, split at random."""

    contexts: str = "1/2(0,0) 1/2(1,1)"
    """Who sees whom; a conversation gives as many windows as its documents have, what does not fit is cut off at its
    beginning."""


@dataclass(frozen=True, kw_only=True)
class ScratchRecipe(Recipe):
    """A small stock model (Qwen3) from random weights."""

    tokenizer: str | None = None
    """A folder or hub id; left out: a byte-level BPE is learnt from the data."""
    vocabulary: int = 4096
    """Entries of a tokenizer that is learnt."""
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    max_positions: int | None = None
    """Positions that the model has, for longer windows later; left out: one window."""
    window: int | None = 512
    learning_rate: float = 3e-3
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank or self.quantize:
            raise LongFocusError(
                "Random weights have nothing to adapt. Leave out --lora-rank and --quantize, or use `train continue` "
                "with a trained model."
            )
        for name, least in (
            ("hidden_size", 1),
            ("layers", 1),
            ("head_dim", 2),
            ("vocabulary", 1),
        ):
            if getattr(self, name) < least:
                raise LongFocusError(f"{name} must be at least {least}. Got {getattr(self, name)}.")
        if self.head_dim % 2:
            raise LongFocusError(
                f"head_dim must be even, for rotary positions turn pairs. Got {self.head_dim}."
            )
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise LongFocusError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}: heads share keys in groups. "
                "Pick kv_heads among the divisors of heads."
            )
