"""Crossbatch training as a method of the trainer: every step draws a plan and a d, and sometimes measures r_d."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from longfocus.core.additional import AdditionalContexts, PositiveMass
from longfocus.core.labels import NO_LOSS
from longfocus.core.plans import NONE
from longfocus.errors import LongFocusError
from longfocus.hf.layers import model_inside
from longfocus.hf.model import FocusMixin
from longfocus.training.contexts import Contexts, StepPlan
from longfocus.training.methods import Batch
from longfocus.training.schedule import Schedule


class Crossbatch:
    """Rows of the batch see windows of other rows, in one window each, with gradients (paper, section 3.2).

    Entries of a batch are consecutive windows of a document, `contexts.windows` of them, one document after the
    other, as `document_rows(packing=...)` gives them. Other rows never see padding. With `group`, plans are drawn
    over the rows of all its processes, so that d can exceed what one of them holds. `one_stream` is for models with
    `positions="true"`: windows stand at their places in the document, and other documents, which have no place in
    it, are refused. With `mask_documents` a token sees no earlier document in its own window; in contexts, whose
    other documents are what training is about, it sees all. With `detached` the keys and values of other rows take no
    gradient, as a memory's would not.
    """

    def __init__(
        self,
        contexts: Contexts,
        schedule: Schedule,
        *,
        seed: int = 0,
        accumulation: int = 1,
        group: distributed.ProcessGroup | None = None,
        mass_every: int = 10,
        one_stream: bool = False,
        mask_documents: bool = False,
        detached: bool = False,
    ) -> None:
        self.detached = detached
        self.contexts, self.schedule, self.group = contexts, schedule, group
        self.seed, self.accumulation, self.mass_every = seed, accumulation, mass_every
        self.one_stream, self.mask_documents = one_stream, mask_documents
        self.d = 0
        """Of the latest step."""
        self.mass: dict[int, float] = {}
        """r_d per memory layer when it was measured last."""
        self.accuracy: float | None = None
        """Share of right tokens in the latest finished step, where the schedule needs it."""
        self._batches = 0
        self._counts = torch.zeros(2, dtype=torch.float64)

    def forward(self, model: nn.Module, batch: Batch, loss: dict[str, Any]) -> Any:
        step, part = divmod(self._batches, self.accumulation)
        if part == 0:
            self._begin(step, batch["labels"].device)
        contexts = self._contexts(batch, step, part)
        if self.mask_documents:
            places = restarting(model, batch["documents"])
        else:
            places = {"position_ids": self._places(batch["input_ids"])} if self.one_stream else {}
        output = model(
            input_ids=batch["input_ids"],
            additional_contexts=contexts,
            use_cache=False,
            **places,
            **loss,
        )
        if contexts.mass is not None:
            self.mass = contexts.mass.by_layer
        if self.schedule.needs_accuracy:
            self._count(output.logits, batch["labels"])
        self._batches += 1
        return output

    def _begin(self, step: int, device: torch.device) -> None:
        """The d of a new step, after what was answered in the one before."""
        if self.schedule.needs_accuracy and step:
            counts = self._counts.to(device, torch.float32)
            if distributed.is_initialized():
                distributed.all_reduce(counts)
            self.accuracy = float(counts[0] / counts[1].clamp(min=1))
            self.schedule.tell(self.accuracy)
            self._counts.zero_()
        self.d = self.schedule.draw(step, _generator(self.seed, 2 * step))

    def _contexts(self, batch: Batch, step: int, part: int) -> AdditionalContexts:
        rows = len(batch["input_ids"])
        ranks, rank = (1, 0) if self.group is None else (self.group.size(), self.group.rank())
        drawn = self.draw(ranks * rows, self.d, _generator(self.seed, 2 * self._batches + 1))
        own = slice(rank * rows, (rank + 1) * rows)
        is_real = batch["documents"] >= 0
        is_measured = part == 0 and self.mass_every > 0 and step % self.mass_every == 0
        return AdditionalContexts(
            plan=drawn.plan[own].to(is_real.device),
            valid=None if bool(is_real.all()) else is_real,
            group=self.group,
            mass=PositiveMass(drawn.is_positive[own]) if is_measured else None,
            detached=self.detached,
        )

    def draw(self, rows: int, d: int, generator: torch.Generator) -> StepPlan:
        """The plan of one step. Raises LongFocusError for one that is impossible."""
        drawn = self.contexts.draw(rows, d, generator)
        if self.one_stream and bool(((drawn.plan != NONE) & ~drawn.is_positive).any()):
            raise LongFocusError(
                f"positions='true' places every window in one stream, where other documents have no place. Got "
                f"contexts={self.contexts.name!r} with d={d}, which has negatives. Use d=1 with 'paper', or segments "
                "without negatives."
            )
        return drawn

    def _places(self, input_ids: Tensor) -> Tensor:
        """Positions of every window in its document, as far as the batch holds it."""
        rows, length = input_ids.shape
        part = torch.arange(rows, device=input_ids.device) % self.contexts.windows
        return part[:, None] * length + torch.arange(length, device=input_ids.device)

    @torch.no_grad()
    def _count(self, logits: Tensor, labels: Tensor) -> None:
        asked = labels != NO_LOSS
        right = logits[asked].argmax(-1) == labels[asked]
        self._counts += torch.tensor([float(right.sum()), float(asked.sum())], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches": self._batches,
            "schedule": self.schedule.state_dict(),
            "counts": self._counts.clone(),
            "mass": dict(self.mass),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batches, self._counts = state["batches"], state["counts"].clone()
        self.mass = dict(state["mass"])
        self.schedule.load_state_dict(state["schedule"])


class Plain:
    """Ordinary language modelling on whole rows: the plain long-context fine-tuning that memory is compared with."""

    def __init__(self, *, mask_documents: bool = False) -> None:
        self.mask_documents = mask_documents

    def forward(self, model: nn.Module, batch: Batch, loss: dict[str, Any]) -> Any:
        # padding stands on the right, where a causal model never looks at it
        places = restarting(model, batch["documents"]) if self.mask_documents else {}
        return model(input_ids=batch["input_ids"], use_cache=False, **places, **loss)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def restarting(model: nn.Module, documents: Tensor) -> dict[str, Tensor]:
    """Positions `[rows, tokens]` that begin anew with every document of a row.

    transformers takes a row whose positions restart for several packed texts, and hides earlier ones. Raises
    LongFocusError for architectures that get their calls through a cache, where it does not look.
    """
    inside = model_inside(model)
    if isinstance(inside, FocusMixin) and not inside.focus.passes_kwargs:
        raise LongFocusError(
            f"{type(inside).__name__} cannot mask documents in its own window. Leave out mask_documents, or pad rows "
            "so that every document begins a window."
        )
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return {"position_ids": index - torch.where(begins, index, 0).cummax(1).values}


def _generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of one step alone, the same on every rank and after every restart."""
    return torch.Generator().manual_seed((seed << 32) + number)
