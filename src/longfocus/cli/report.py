"""`longfocus report`: what runs of `longfocus evaluate --output` have measured, as a page and as Markdown."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from longfocus.atomic import write_text
from longfocus.cli.outputs import refuse_unwritable
from longfocus.errors import LongFocusError, extra

DAMAGED = 2


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Put the results of several runs side by side: accuracy, perplexity and attention by length, beside the paper's
    figures, each row with the command that made it. Without --output and --markdown the Markdown is printed."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs; any other folder stands for all runs below it."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write one HTML page with plots here, which needs no network."""
    markdown: Path | None = None
    """Write the tables here, as Markdown."""


def run(arguments: Arguments) -> int | None:
    if not arguments.folders:
        raise LongFocusError("There is nothing to report of. Give folders of `longfocus evaluate`.")
    refuse_unwritable(arguments.output, arguments.markdown)
    from longfocus.evaluation.report.groups import groups
    from longfocus.evaluation.report.markdown import markdown
    from longfocus.evaluation.report.runs import find

    found = find(arguments.folders)
    for damaged in found.damaged:
        print(
            f"longfocus: error: {damaged.folder} is left out: {damaged.why}. Run its experiment again in another "
            "folder, or take it out.",
            file=sys.stderr,
        )
    of_experiments = groups(found.runs)
    if arguments.output is not None:
        with extra("plot", "The page of a report"):
            from longfocus.evaluation.report.page import page
        write_text(arguments.output, page(of_experiments, found.damaged))
    text = markdown(of_experiments, found.damaged)
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)
    if arguments.output is None and arguments.markdown is None:
        print(text, end="")
    return DAMAGED if found.damaged else None
