"""The demo's part about plain reading: how well the language model predicts real text, by what is in memory."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.cli.tables import length, live_table, table_of
from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from rich.console import Console


def loss_on_real_text(
    console: "Console", model: str, file: Path | None, lengths: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """A table of perplexity by tokens in memory; empty where the user's file is too short."""
    import longfocus
    from longfocus.core import standard_library
    from longfocus.evaluation.real_text import LONGEST, evaluate_loss

    files = standard_library.modules() if file is None else [file]
    where = "the standard library's modules" if file is None else str(file)
    table = table_of(
        f"Reading {where}: how well the next token is predicted, by what is in memory",
        "perplexity|loss|change|95% of the change|MiB",
    )
    loaded, tokenizer = longfocus.from_pretrained(model), longfocus.tokenizer(model)
    rows = []
    try:
        with live_table(console, table) as show:
            for result in evaluate_loss(
                loaded,
                tokenizer,
                files=files,
                longest=min(LONGEST, max(lengths)),
                seed=seed,
                progress=lambda done, total: show("text", done, total),
            ):
                rows.append(asdict(result))
                ends = result.loss_change_interval
                table.add_row(
                    length(result.tokens),
                    f"{result.perplexity:.2f}",
                    f"{result.loss:.3f}",
                    f"{result.loss_change:+.3f}" if result.tokens else "-",
                    "-" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}",
                    f"{result.memory_bytes / 1024**2:,.0f}",
                )
    except LongFocusError as error:
        # a short file still has pass keys to hide in it
        console.print(f"{where} is not measured: {error}", highlight=False, soft_wrap=True)
    return rows
