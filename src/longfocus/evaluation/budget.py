"""How many tokens a model may attend to at once: the same for all methods of a comparison but `full` (methods.py)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longfocus.errors import LongFocusError
from longfocus.evaluation.contexts import previous_window
from longfocus.evaluation.experiment import PLAIN_WINDOW
from longfocus.hf.layers import longest_window
from longfocus.inference.prompts import starting_ids

if TYPE_CHECKING:
    from longfocus.evaluation.subject import Subject


@dataclass(frozen=True)
class Budget:
    """What a prompt may have."""

    tokens: int
    """With question and answer, and with the prefix."""
    chunk: int
    """Tokens of a chunk that is retrieved."""
    prefix: tuple[int, ...]
    """Begins every window and every prompt."""

    @property
    def text_window(self) -> int:
        """Tokens of a window without its prefix."""
        return self.tokens - len(self.prefix)


def budget_of(subject: "Subject", asked: int | None, chunk: int | None) -> Budget:
    """Raises LongFocusError for more than the model's window or positions hold, and for a model that has neither."""
    if previous_window(subject) is not None:
        raise LongFocusError(
            "A Transformer-XL has the window before, and no text in its prompt. Give a model with a memory, or a plain "
            "one."
        )
    prefix = starting_ids(subject.window_prefix, subject.tokenizer)
    most = subject.window if subject.has_memory else positions(subject.model)
    if asked is not None and most is not None and asked > most:
        raise LongFocusError(
            f"--budget {asked} is more than this model's {'window' if subject.has_memory else 'positions'} of {most} "
            "tokens. Give at most that many, or leave it out."
        )
    usual = most if subject.has_memory else min(PLAIN_WINDOW, most or PLAIN_WINDOW)
    assert usual is not None
    tokens = asked or usual
    return Budget(tokens, chunk or max(tokens // 4, 1), prefix)


def positions(model: Any) -> int | None:
    """Tokens that a model without memory can have in its prompt; None for any number."""
    return longest_window(model.config.get_text_config())


def why_not(subject: "Subject", method: str, prompt: int) -> str | None:
    """Why a method cannot be measured with this model, where all of its text and question make `prompt` tokens."""
    if method.startswith("memory") and not subject.has_memory:
        return "the model has no memory"
    if method == "full":
        most = positions(subject.model)
        return f"beyond the model's {most:,} positions" if most and prompt > most else None
    return None
