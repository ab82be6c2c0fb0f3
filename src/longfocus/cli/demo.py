"""`longfocus demo`: hide facts in up to a million tokens, read them into memory, and ask for them.

    text         how well the next tokens of real text are predicted, by what is in memory
    pass keys    in real text: the Python standard library's own source code, or a file of yours
    dictionary   the paper's lookup task

Everything goes through the public API: from_pretrained, Session.read, Session.ask, generate.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.atomic import write_text
from longfocus.cli.demo_text import loss_on_real_text
from longfocus.cli.outputs import refuse_unwritable
from longfocus.cli.tables import costs, length, live_table, parse_lengths, percent, table_of
from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from rich.console import Console

    from longfocus.evaluation.passkey import PasskeyResult

LONGEST_TEXT = 1_048_576


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Hide pass keys in real text and words in a dictionary, read them into memory, and ask."""

    tokens: tuple[str, ...] = ("1M",)
    """Tokens of memory. One length (such as 64K or 16M): everything from 4K up to it, times 4; several: just those.
    1K is 1024. Text stops at 1M, the dictionary goes on."""
    file: Path | None = None
    """Hide the pass keys in this text instead of the standard library's source code."""
    json: Path | None = None
    """Write every number here."""
    plot: Path = Path("longfocus-demo.png")
    """Write the picture here."""
    train: bool = False
    """Train the models that answer first, from scratch, in ./longfocus-models (resumable, an hour on two cores)."""
    seed: int = 2026
    """Of hiding places, keys and questions. Nothing was ever chosen by results on the default."""


def run(arguments: Arguments) -> int | None:
    from rich.console import Console
    from transformers import logging

    import longfocus
    from longfocus.evaluation.source_lines import words_of_names
    from longfocus.hf.pretrained import resolve

    lengths = parse_lengths(arguments.tokens)
    _check_outputs(arguments)
    logging.disable_progress_bar()
    console = Console()
    code, control, dictionary = (
        _train(console) if arguments.train else ("code", "code_control", "dictionary")
    )
    model, tokenizer = longfocus.from_pretrained(code), longfocus.tokenizer(code)
    words = words_of_names(Path(resolve(code)))
    texts = [n for n in lengths if n <= LONGEST_TEXT]
    if not texts:
        raise LongFocusError(
            f"--tokens {' '.join(arguments.tokens)}: texts stop at 1M tokens, so nothing could be hidden in one. "
            "Add a length up to 1M, or give one length alone for everything from 4K up to it."
        )
    text = loss_on_real_text(console, "language", arguments.file, texts, arguments.seed)
    hidden = _Hidden(arguments, console, tokenizer, words, texts)
    plain = hidden.plain(model)
    hard = hidden.hard(model, longfocus.from_pretrained(control))
    looked_up = _dictionary(console, longfocus.from_pretrained(dictionary), lengths, arguments.seed)
    found = {"text": text, "passkey": plain, "passkey_hard": hard, "dictionary": looked_up}
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(found, indent=1))
        console.print(f"Every number: {arguments.json}", soft_wrap=True)
    _plot(console, found, arguments.plot)
    return None


class _Hidden:
    """Pass keys hidden in real text."""

    def __init__(
        self,
        arguments: Arguments,
        console: "Console",
        tokenizer: Any,
        words: Sequence[str],
        lengths: list[int],
    ) -> None:
        self.arguments, self.console, self.lengths = arguments, console, lengths
        self.tokenizer, self.words = tokenizer, words
        self.where = str(arguments.file or "the Python standard library's source code")

    def plain(self, model: Any) -> list[dict[str, Any]]:
        """One new key per length, and 40 new keys per length."""
        table = table_of(
            f"Pass keys hidden in {self.where}",
            "one key|40 keys|without memory|its line|read/s|s/answer|MiB",
        )
        rows = []
        with live_table(self.console, table) as show:
            one = self._evaluate(model, keys=1, name="one key", show=show)
            for first, result in zip(
                one, self._evaluate(model, keys=40, name="40 keys", show=show), strict=True
            ):
                rows.append(_row(result) | {"accuracy_one_key": first.accuracy})
                table.add_row(
                    length(result.tokens),
                    percent(first.accuracy),
                    percent(result.accuracy),
                    percent(result.accuracy_without_memory),
                    percent(result.looked_at_answer),
                    *costs(result),
                )
        self._say_where(result)
        if result.text_repeated:
            self.console.print(
                f"{self.where} has fewer tokens, and was read {result.text_repeated + 1} times over.",
                highlight=False,
            )
        return rows

    def hard(self, model: Any, control: Any) -> list[dict[str, Any]]:
        """Four other pass keys in every window, names from the same words; beside it the model trained with d = 1."""
        table = table_of(
            "The same with four other pass keys in every window, and a model trained without crossbatch (d = 1)",
            "other keys|d > 1|d = 1|without memory|its line|read/s|s/answer|MiB",
        )
        rows = []
        with live_table(self.console, table) as show:
            ours = self._evaluate(model, keys=None, name="crossbatch", show=show)
            theirs = self._evaluate(control, keys=None, name="d = 1", show=show)
            for result, other in zip(ours, theirs, strict=True):
                rows.append(
                    _row(result)
                    | {"accuracy_d1": other.accuracy, "looked_at_answer_d1": other.looked_at_answer}
                )
                table.add_row(
                    length(result.tokens),
                    f"{result.keys - 1:,}",
                    percent(result.accuracy),
                    percent(other.accuracy),
                    percent(result.accuracy_without_memory),
                    percent(result.looked_at_answer),
                    *costs(result),
                )
        return rows

    def _evaluate(
        self, model: Any, *, keys: int | None, name: str, show: Any
    ) -> Iterator["PasskeyResult"]:
        from longfocus.evaluation.passkey import PasskeyTask, evaluate_passkey

        task = PasskeyTask(
            keys=keys,
            lengths=tuple(self.lengths),
            seed=self.arguments.seed,
            file=self.arguments.file,
        )
        return evaluate_passkey(
            model,
            self.tokenizer,
            task,
            words=self.words,
            progress=lambda done, total: show(name, done, total),
        )

    def _say_where(self, result: "PasskeyResult") -> None:
        """Where the model looked while it wrote the first digit of its answers."""
        self.console.print(
            "\nits line: most attention, at the first digit, on the line that holds the answer. read/s: tokens read "
            "per second"
        )
        self.console.print(
            f"Where it looked for the first digit, at {length(result.tokens)} tokens:"
        )
        for look in result.looks[:3]:
            self.console.print(
                f"  {look.key.name}: {look.place} with {look.weight:.0%} of the attention"
                f"{'' if look.is_right else f', not at {look.key.file}:{look.key.line}'}",
                highlight=False,
            )


def _dictionary(
    console: "Console", model: Any, lengths: list[int], seed: int
) -> list[dict[str, Any]]:
    from longfocus.evaluation.dictionary import DictionaryTask, evaluate_dictionary

    table = table_of(
        "Dictionary: words of 4 symbols, asked from the whole memory",
        "answer tokens|whole answers|without memory|read/s|s/answer|MiB",
    )
    rows = []
    with live_table(console, table) as show:
        task = DictionaryTask(lengths=tuple(lengths), seed=seed)
        for result in evaluate_dictionary(
            model, task, report=lambda done, total: show("dictionary", done, total)
        ):
            rows.append(asdict(result))
            table.add_row(
                length(result.tokens),
                percent(result.accuracy),
                percent(result.whole_answer_accuracy),
                percent(result.accuracy_without_memory),
                *costs(result),
            )
    return rows


def _check_outputs(arguments: Arguments) -> None:
    """Fail before the work, not after it."""
    from longfocus.evaluation.experiment import refuse_unreadable

    refuse_unwritable(arguments.json, arguments.plot)
    refuse_unreadable(arguments.file)


def _train(console: "Console") -> tuple[str, str, str]:
    """Train the models as `longfocus train` does; the same command goes on after an interruption."""
    from longfocus.cli import train

    folder = Path("longfocus-models")
    console.print(
        f"Training in {folder.resolve()}; stop it when you like, the same command goes on.",
        soft_wrap=True,
    )
    dictionary = train.run_dictionary(train.DictionaryArguments(output=folder / "dictionary"))
    if (
        dictionary is not None
        or train.run_code(train.CodeArguments(output=folder / "code")) is not None
    ):
        raise KeyboardInterrupt
    return str(folder / "code"), str(folder / "code" / "control"), str(folder / "dictionary")


def _plot(console: "Console", found: dict[str, Any], path: Path) -> None:
    try:
        from longfocus.evaluation.plot import demo
    except ImportError:
        console.print("No picture: matplotlib is missing. pip install 'longfocus\\[plot]'")
        return
    demo(found, path)
    console.print(f"Picture: {path.resolve()}", soft_wrap=True)


def _row(result: "PasskeyResult") -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if name != "looks"}
