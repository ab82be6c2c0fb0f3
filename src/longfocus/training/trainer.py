"""The trainer: `transformers.Trainer` with rows that go on, training methods, exact resume and live numbers.

    outcome = fit(model, rows, method, directory, settings, report=print)

transformers does optimization, mixed precision, gradient checkpointing and accumulation, processes, checkpoints and
trackers. Here: batches whose targets may lie in the next window, one loss normalised over all micro-batches and ranks,
the state of rows and method in every checkpoint, `metrics.jsonl`, and an end that is clean after Ctrl-C, SIGTERM, a
full disk or a loss that is not a number.
"""

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback

from longfocus.errors import LongFocusError
from longfocus.training import checkpoints
from longfocus.training.conversations import ConversationRows
from longfocus.training.crossbatch import Crossbatch
from longfocus.training.methods import Batch, Method
from longfocus.training.optimizers import joined_muon
from longfocus.training.ranks import meet, together
from longfocus.training.row_batches import RowBatches
from longfocus.training.rows import Rows
from longfocus.training.settings import Settings, training_arguments
from longfocus.training.signals import stop_signals

METRICS_FILE = "metrics.jsonl"
WRITING_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO}


class TrainingStep(NamedTuple):
    """What `report` is told after every step, and `metrics.jsonl` keeps."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float
    """Of this step, over all processes."""
    seconds_left: float
    d: int | None
    """Additional contexts' d of the step; None without crossbatch."""
    positive_mass: dict[int, float]
    """r_d per memory layer as it was measured last; empty without crossbatch."""
    accuracy: float | None
    """Of the step before, where a schedule of d asks for it."""
    tokens: int
    """Read since the first step, over all processes, those before a resume included."""
    cpu_seconds: float
    """Processor time of this process since the first step, that before a resume included."""


class Ended(NamedTuple):
    """How training ended."""

    ending: Literal["finished", "interrupted"]
    signal: int | None
    """That interrupted it."""
    steps: int
    """Made so far, those before a resume included."""


def fit(
    model: nn.Module,
    rows: Rows | ConversationRows,
    method: Method,
    directory: Path,
    settings: Settings,
    *,
    report: Callable[[TrainingStep], None] = lambda step: None,
    finish: Callable[["FocusTrainer"], None] = lambda trainer: None,
) -> Ended:
    """Train `model` in place, going on from the newest whole checkpoint in `directory`.

    Ends after the running step, with a checkpoint, when a SIGINT or SIGTERM arrives. Raises LongFocusError when the
    loss is no number or a file cannot be written; the last good checkpoint stays. `finish` is called on every process
    after the last step.
    """

    def ready() -> tuple[FocusTrainer, Path | None]:
        trainer = FocusTrainer(model, RowBatches(rows), method, directory, settings, report)
        checkpoint = checkpoints.latest(directory, trainer.args.world_size)
        trainer.begin(checkpoint)
        return trainer, checkpoint

    trainer, checkpoint = together(ready)
    with stop_signals() as stopped:
        trainer.stopped = stopped
        try:
            trainer.go_on(checkpoint)
            finished = trainer.state.global_step >= settings.max_steps
            if finished:
                together(lambda: finish(trainer))
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_writing_error(error):
                raise
            raise trainer.cannot_write(error) from error
        ending = "finished" if finished else "interrupted"
        return Ended(ending, stopped(), trainer.state.global_step)


class FocusTrainer(Trainer):
    """transformers' trainer with a method in place of its forward pass."""

    stopped: Callable[[], int | None]

    def __init__(
        self,
        model: Any,
        batches: RowBatches,
        method: Method,
        directory: Path,
        settings: Settings,
        report: Callable[[TrainingStep], None],
    ) -> None:
        arguments = training_arguments(directory, settings)
        # transformers would write its own choice into the model's config, and into what is saved
        arguments.use_cache = bool(getattr(model.config, "use_cache", True))
        super().__init__(model=model, args=arguments, callbacks=[_Watch(self)])
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self.batches, self.method, self.directory, self.report = batches, method, directory, report
        self.settings, self.stopped = settings, lambda: None
        self._tokens, self._clock = 0, time.monotonic()
        self._first_step, self._started = 0, time.monotonic()
        self.tokens, self._cpu_seconds, self._cpu_clock = 0, 0.0, time.process_time()

    def begin(self, checkpoint: Path | None) -> None:
        """Rows and method as the checkpoint left them, and metrics cut off behind it."""
        step = 0
        if checkpoint is not None:
            state = checkpoints.load_rank(checkpoint, self.args.process_index)
            self.batches.rows.load_state_dict(json.loads(state["rows"]))
            self.method.load_state_dict(state["method"])
            step = int(checkpoint.name.rpartition("-")[2])
            self.tokens, self._cpu_seconds = state["tokens"], state["cpu_seconds"]
        self._first_step = step
        if self.is_world_process_zero():
            file = self.directory / METRICS_FILE
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            temporary = file.with_suffix(".tmp")
            temporary.write_text("".join(lines[:step]))
            temporary.replace(file)

    def go_on(self, checkpoint: Path | None) -> None:
        """Train from the checkpoint; only load it if all steps are made, where `train` would make one more."""
        if checkpoint is not None and self._first_step >= self.args.max_steps:
            self._load_from_checkpoint(str(checkpoint))
            self.state.global_step = self._first_step
        else:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.settings.optimizer == "muon":
            self.optimizer = joined_muon(cast(nn.Module, model or self.model), self.settings)
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader:
        # every process has its own documents, so accelerate must not deal batches out
        return DataLoader(self.batches, batch_size=None)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self._tokens += int((inputs["documents"] >= 0).sum())
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(self.accelerator.gather(loss)).all()):
            meet(None if bool(torch.isfinite(loss)) else self._not_a_number(inputs, loss))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["shift_labels"]
        assert num_items_in_batch is not None, "transformers no longer counts targets"
        # a batch may have no target at all
        count = torch.as_tensor(num_items_in_batch, device=labels.device).clamp(min=1)
        arguments = {"labels": labels, "shift_labels": labels, "num_items_in_batch": count}
        output = self.method.forward(model, cast(Batch, inputs), arguments)
        # DDP and FSDP average gradients over processes, and the count is that of all of them
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            mass = self._note(logs).positive_mass
            logs = logs | {f"r_d/{layer}": share for layer, share in mass.items()}
        super().log(logs, start_time)

    def _note(self, logs: dict[str, float]) -> TrainingStep:
        """Write and report the step that was just made."""
        step, now = self.state.global_step, time.monotonic()
        tokens = torch.tensor([self._tokens], device=self.args.device)
        tokens = int(self.accelerator.gather(tokens).sum())
        self.tokens += tokens
        crossbatch = self.method if isinstance(self.method, Crossbatch) else None
        made = max(step - self._first_step, 1)
        noted = TrainingStep(
            step=step,
            steps=self.args.max_steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=tokens / max(now - self._clock, 1e-9),
            seconds_left=(now - self._started) / made * (self.args.max_steps - step),
            d=None if crossbatch is None else crossbatch.d,
            positive_mass={} if crossbatch is None else crossbatch.mass,
            accuracy=None if crossbatch is None else crossbatch.accuracy,
            tokens=self.tokens,
            cpu_seconds=self.cpu_seconds,
        )
        self._tokens, self._clock = 0, now
        if self.is_world_process_zero():
            with (self.directory / METRICS_FILE).open("a") as file:
                file.write(json.dumps(noted._asdict()) + "\n")
            self.report(noted)
        return noted

    @property
    def cpu_seconds(self) -> float:
        return self._cpu_seconds + time.process_time() - self._cpu_clock

    def _not_a_number(self, inputs: dict[str, Any], loss: Tensor) -> LongFocusError:
        numbers = sorted(set(inputs["documents"].flatten().tolist()) - {-1})
        return self.failed(
            f"loss is {loss.item()}",
            f"Its documents, of process {self.args.process_index}, are number {numbers[:8]}"
            f"{'...' if len(numbers) > 8 else ''}. Lower the learning rate, or look at them.",
        )

    def failed(self, what: str, advice: str) -> LongFocusError:
        last = checkpoints.latest(self.directory, self.args.world_size)
        return LongFocusError(
            f"Training failed: the {what} in step {self.state.global_step + 1}. The weights were not changed by it; "
            f"the last good checkpoint is {last or 'none'}. {advice}"
        )

    def cannot_write(self, error: Exception) -> LongFocusError:
        last = checkpoints.latest(self.directory, self.args.world_size) or "none"
        return LongFocusError(
            f"Training stopped because a file could not be written: {error}. The last good checkpoint is {last}. "
            f"Make room on the disk of {self.directory}, or check its rights; the same command goes on."
        )


class _Watch(TrainerCallback):
    """Stops on a signal, and completes every checkpoint."""

    def __init__(self, trainer: FocusTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._clock = self.trainer._started = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a loss can be a number where its gradient is none
        weights = kwargs["model"].parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not bool(torch.isfinite(nn.utils.get_total_norm(gradients))):
            # the same on every process: a mean over all of them
            meet(self.trainer.failed("gradient is not finite", "Lower the learning rate."))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # one process may have been told and another not yet
        told = torch.tensor([self.trainer.stopped() is not None], device=args.device)
        if bool(self.trainer.accelerator.gather(told).any()):
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        own = {
            "rows": json.dumps(trainer.batches.rows.state_dict()),
            "method": trainer.method.state_dict(),
            "tokens": trainer.tokens,
            "cpu_seconds": trainer.cpu_seconds,
        }
        meet()
        together(lambda: checkpoints.save_rank(folder, args.process_index, args.world_size, own))


def _is_writing_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in WRITING_ERRORS
    # torch reports a full disk as a RuntimeError of its writer
    return isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error)
