"""`longfocus ask QUESTION --model MODEL --library DIR`: an answer from memory, and where the model looked."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from longfocus.cli.model_options import (
    DocumentOptions,
    ModelOptions,
    open_session,
    refuse_no_tokens,
)
from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import printable

if TYPE_CHECKING:
    from longfocus.inference.answer import Answer, Span
    from longfocus.inference.session import Session

SHOWN_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True)
class Arguments(DocumentOptions, ModelOptions):
    """Ask questions about the documents of a library, or of files."""

    questions: Annotated[tuple[str, ...], tyro.conf.Positional]
    """One or more questions; several are answered as one batch that shares the memory."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    system: str | None = None
    """First message, for models with a chat template."""
    sources: bool = False
    """Print the places in the documents with most attention."""
    html: Path | None = None
    """Write a page here: the answer, and the documents with colour where the model looked."""
    json: Path | None = None
    """Write answers and sources here."""


def run(arguments: Arguments) -> None:
    _check(arguments)
    session = open_session(arguments, arguments, system=arguments.system)
    answers = session.ask(list(arguments.questions), max_new_tokens=arguments.max_new_tokens)
    several = len(answers) > 1
    for question, answer in zip(arguments.questions, answers, strict=True):
        if several:
            print(f"# {question}")
        print(answer.text)
        if arguments.sources:
            print(sources_text(answer))
    if session.retained:
        print(kept_text(session), file=sys.stderr)
    if arguments.html is not None:
        from longfocus.inference.page.of_answer import answer_page
        from longfocus.inference.page.render import write_page

        write_page(
            arguments.html, answer_page(arguments.questions[0], answers[0], session.tokenizer)
        )
    if arguments.json is not None:
        rows = [_row(q, a) for q, a in zip(arguments.questions, answers, strict=True)]
        arguments.json.write_text(json.dumps({"answers": rows}, indent=1) + "\n")


def _check(arguments: Arguments) -> None:
    """What would fail behind the answer is refused before it."""
    if not arguments.questions or not all(arguments.questions):
        raise LongFocusError(
            "There is no question. Give one in quotes, before options such as --select that take several words."
        )
    refuse_no_tokens(arguments.max_new_tokens)
    for path in (arguments.html, arguments.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise LongFocusError(
                f"There is no folder {path.absolute().parent} to write {path.name} in."
            )
        if path is not None and path.is_dir():
            raise LongFocusError(f"{path} is a folder. Give the name of a file to write.")
    if arguments.html is not None and len(arguments.questions) > 1:
        raise LongFocusError("--html shows one answer. Give one question.")


def kept_text(session: "Session") -> str:
    """What approximate search kept, one memory layer a line."""
    lines = [
        f"layer {layer}: kept {own.mean:.2%} of the attention on the memory (least {own.least:.2%}, {own.queries:,} "
        "queries measured)"
        for layer, own in session.retained.items()
    ]
    proven = [
        f"layer {layer}: proven for {own.queries:,} queries: at most {own.most:.2%} missed"
        for layer, own in session.certified.items()
    ]
    return "\n".join(lines + proven)


def sources_text(answer: "Answer") -> str:
    """Where the model looked, one place a line."""
    if not answer.sources:
        return "\nsources: none, there are no documents in memory"
    lines = ["", "sources (share of attention, place, text):"]
    return "\n".join([*lines, *(_line(span) for span in answer.sources)])


def _line(span: "Span") -> str:
    text = " ".join(span.text.split())
    text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    place = span.document + (f" ({span.part})" if span.part else "")
    return f"  {span.weight:6.1%}  {printable(place)}:{span.line}  {printable(text)}"


def _row(question: str, answer: "Answer") -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "sources": [asdict(span) for span in answer.sources],
    }
