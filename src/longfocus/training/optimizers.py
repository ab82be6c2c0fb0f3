"""Muon for the matrices of the layers and AdamW for the rest, as one optimizer with one state.

Muon orthogonalises the update of a matrix. Embeddings, norms, gates and biases get AdamW's. The
memory layer's q_norm and k_norm, in which the temperature of its softmax lives, may learn faster than the rest: a
softmax over thousands of memories must be sharper than one over a window.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from longfocus.core.processor import multiplies
from longfocus.training.settings import Settings

NORMS = ("q_norm.weight", "k_norm.weight")


class Weights(NamedTuple):
    """The weights of a model by how they are trained."""

    matrices: list[Tensor]
    """Of the layers."""
    temperature: list[Tensor]
    """Of memory layers: q_norm and k_norm, where the architecture has them."""
    rest: list[Tensor]


def divided(model: nn.Module, memory_layers: Sequence[int]) -> Weights:
    """The weights that are trained, by name and shape."""
    attentions = tuple(f"layers.{layer}.self_attn." for layer in memory_layers)
    weights = Weights([], [], [])
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if any(part in name for part in attentions) and name.endswith(NORMS):
            weights.temperature.append(weight)
        elif weight.ndim == 2 and ".layers." in name:
            weights.matrices.append(weight)
        else:
            weights.rest.append(weight)
    return weights


class _NotNarrowed(TorchFunctionMode):
    """float32 where torch asks for bfloat16."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (Tensor.float if func is Tensor.bfloat16 else func)(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """torch's, which orthogonalises in bfloat16 for speed: in float32 on a CPU where that is the faster one."""

    def step(self, closure: Any = None) -> Any:
        weights = (weight for group in self.param_groups for weight in group["params"])
        if all(multiplies(torch.bfloat16, weight.device) for weight in weights):
            return super().step(closure)
        with _NotNarrowed():
            return super().step(closure)


def muon_and_adamw(
    weights: Weights,
    *,
    matrix_rate: float,
    other_rate: float,
    temperature_rate: float = 1.0,
    matrix_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon, its updates as large as AdamW's, and AdamW; `temperature_rate` is a factor on `other_rate`."""
    muon = Muon(
        weights.matrices,
        lr=matrix_rate,
        weight_decay=matrix_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [
        {"params": weights.rest, "lr": other_rate},
        {"params": weights.temperature, "lr": other_rate * temperature_rate},
    ]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]


class Joined(torch.optim.Optimizer):
    """Several optimizers as one, for a trainer that knows one: their groups, steps and states one after the other."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # the same dictionaries, so that a schedule that sets rates here sets them there
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        assert closure is None, "no part can evaluate the model again on its own"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def joined_muon(model: nn.Module, settings: Settings) -> Joined:
    """Muon and AdamW as the settings want them, both with their learning rate."""
    parts = muon_and_adamw(
        divided(model, settings.memory_layers),
        matrix_rate=settings.learning_rate,
        other_rate=settings.learning_rate,
        temperature_rate=settings.temperature_rate,
        matrix_decay=settings.weight_decay,
    )
    return Joined(parts)
