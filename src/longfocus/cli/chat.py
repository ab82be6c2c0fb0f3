"""`longfocus chat --model MODEL --library DIR`: talk to a model about documents, in the terminal.

The conversation has no end: what leaves the window goes into memory. `/help` lists what can be said besides.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longfocus.cli.model_options import (
    DocumentOptions,
    ModelOptions,
    chosen_documents,
    load,
    open_session,
    refuse_no_tokens,
)
from longfocus.errors import LongFocusError
from longfocus.inference.texts.folder import printable

if TYPE_CHECKING:
    from longfocus.inference.answer import Answer
    from longfocus.inference.session import Session

MAIN = "main"
MOST_MARKS = 20
"""Turns that /undo can take back: every mark keeps the window of its time."""


@dataclass(frozen=True, kw_only=True)
class Arguments(DocumentOptions, ModelOptions):
    """Talk to a model that has documents in memory."""

    session: Path | None = None
    """Go on with a conversation that /save wrote. Its documents are found where they were, or in --library."""
    system: str | None = None
    """First message, for models with a chat template."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 always takes the most likely token; above, tokens are drawn."""


def run(arguments: Arguments) -> None:
    if arguments.temperature < 0:
        raise LongFocusError(f"--temperature must be at least 0. Got {arguments.temperature}.")
    refuse_no_tokens(arguments.max_new_tokens)
    chat = Chat(_session(arguments), arguments)
    if sys.stdin.isatty():
        with suppress(ImportError):
            # gives input() a history and line editing
            import readline  # noqa: F401
        print(
            f"{chat.session.tokens:,} tokens of documents in memory. /help for what you can say, Ctrl-D to end."
        )
    chat.run()


def _session(arguments: Arguments) -> "Session":
    if arguments.session is None:
        return open_session(arguments, arguments, system=arguments.system)
    from longfocus.inference.session import Session

    own = {
        "--system": arguments.system,
        "--window-prefix": arguments.window_prefix,
        "--search": arguments.search,
        "--top-k": arguments.top_k,
        "--retain": arguments.retain,
        "--index": arguments.index,
        "--certify": arguments.certify,
    }
    if given := [name for name, value in own.items() if value is not None]:
        raise LongFocusError(f"A saved session has its own settings. Leave out {', '.join(given)}.")
    if not arguments.session.is_file():
        raise LongFocusError(
            f"There is no session {arguments.session}. In a chat, /save writes one."
        )
    documents = list(chosen_documents(arguments))
    model, tokenizer = load(arguments)
    session = Session.load(arguments.session, model, tokenizer, documents=documents)
    known = {document.hash for document in session.documents}
    session.documents += [document for document in documents if document.hash not in known]
    for path in arguments.read:
        session.read(path)
    return session


class Chat:
    """One terminal, and the branches of its conversation."""

    def __init__(self, session: "Session", arguments: Arguments) -> None:
        self.arguments = arguments
        self.branches: dict[str, Session] = {MAIN: session}
        self.branch = MAIN
        self.marks: dict[str, list[Any]] = {MAIN: []}
        self.answer: Answer | None = None
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/read": (self.read, "FILE or folder: read it into memory"),
            "/forget": (self.forget, "NAME: leave a document out, as if it had never been read"),
            "/documents": (self.documents, "what is in memory"),
            "/sources": (self.sources, "where the model looked for its last answer"),
            "/html": (self.html, "FILE: the last answer as a page, with colour where it looked"),
            "/undo": (
                self.undo,
                f"take back the last question and its answer; up to {MOST_MARKS} of them",
            ),
            "/fork": (
                self.fork,
                "NAME: go on in a branch of this name; the other one stays as it is",
            ),
            "/switch": (self.switch, "NAME: go on in another branch; without a name: list them"),
            "/save": (self.save, "FILE: the conversation, for --session FILE"),
            "/help": (self.help, "this list"),
            "/exit": (self.exit, "end (also Ctrl-D)"),
        }

    @property
    def session(self) -> "Session":
        return self.branches[self.branch]

    def run(self) -> None:
        """Until the end of the input."""
        while True:
            prompt = "> " if self.branch == MAIN else f"{self.branch} > "
            try:
                said = input(prompt if sys.stdin.isatty() else "")
            except EOFError:
                return
            except UnicodeDecodeError as error:
                print(f"error: what was typed is not {error.encoding} text.", file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print("\n(Ctrl-D ends)")
                continue
            try:
                self.say(said.strip())
            except SystemExit:
                return
            except Exception as error:
                # whatever went wrong, the conversation is not lost
                print(f"error: {error or type(error).__name__}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\n(stopped; the conversation is as it was)")

    def say(self, said: str) -> None:
        """A command, or something for the model."""
        if not said:
            return
        if not said.startswith("/"):
            return self.ask(said)
        command, _, given = said.partition(" ")
        if command not in self.commands:
            raise LongFocusError(f"There is no {command}. Known: {', '.join(self.commands)}.")
        return self.commands[command][0](given.strip())

    def ask(self, said: str) -> None:
        from transformers import TextStreamer

        mark = self.session.mark()
        tokenizer: Any = self.session.tokenizer
        drawn = self.arguments.temperature
        settings = {"do_sample": True, "temperature": drawn} if drawn else {}
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.answer = self.session.chat(
            said, self.arguments.max_new_tokens, streamer=streamer, **settings
        )
        self.marks[self.branch] = [*self.marks[self.branch], mark][-MOST_MARKS:]

    def read(self, given: str) -> None:
        document = self.session.read(Path(_needed(given, "/read FILE")).expanduser())
        print(f"read {printable(document.name)}: {document.tokens:,} tokens")

    def forget(self, given: str) -> None:
        before = len(self.session.documents)
        self.session.forget(_needed(given, "/forget NAME"))
        number = before - len(self.session.documents)
        print(
            f"forgot {printable(given)}"
            + (f", {number} documents of that name" if number > 1 else "")
        )

    def documents(self, given: str) -> None:
        del given
        from longfocus.inference.page.html import counted

        for document in self.session.documents:
            print(f"  {printable(document.name)}: {document.tokens:,} tokens")
        print(f"{counted(len(self.session.documents), 'document')}, {self.session.tokens:,} tokens")

    def sources(self, given: str) -> None:
        del given
        from longfocus.cli.ask import sources_text

        print(sources_text(self._answered()).lstrip("\n"))

    def html(self, given: str) -> None:
        from longfocus.inference.page.of_answer import answer_page
        from longfocus.inference.page.render import write_page

        answer, path = self._answered(), Path(_needed(given, "/html FILE")).expanduser()
        question = next(m["content"] for m in self.session.messages[::-1] if m["role"] == "user")
        write_page(path, answer_page(question, answer, self.session.tokenizer))
        print(f"wrote {path}")

    def undo(self, given: str) -> None:
        del given
        if not self.marks[self.branch]:
            raise LongFocusError("There is nothing to take back in this branch.")
        # what was read or forgotten meanwhile stays so
        mark = self.marks[self.branch].pop()
        self.session.rewind(mark._replace(documents=tuple(self.session.documents)))
        self.answer = None
        print("taken back")

    def fork(self, given: str) -> None:
        name = _needed(given, "/fork NAME")
        if name in self.branches:
            raise LongFocusError(f"There is a branch {name!r} already. /switch {name} goes there.")
        self.branches[name] = self.session.fork()
        self.marks[name] = list(self.marks[self.branch])
        self.branch = name
        print(f"in branch {name}")

    def switch(self, given: str) -> None:
        if given in self.branches:
            self.branch, self.answer = given, None
        elif given:
            raise LongFocusError(
                f"There is no branch {given!r}. Known: {', '.join(self.branches)}."
            )
        for name, session in self.branches.items():
            here = "*" if name == self.branch else " "
            print(f"{here} {name}: {len(session.messages)} messages")

    def save(self, given: str) -> None:
        path = Path(_needed(given, "/save FILE")).expanduser()
        self.session.save(path)
        print(f"saved {path}")

    def help(self, given: str) -> None:
        del given
        for command, (_, meaning) in self.commands.items():
            print(f"  {command:<11} {meaning}")

    def exit(self, given: str) -> None:
        del given
        raise SystemExit

    def _answered(self) -> "Answer":
        if self.answer is None:
            raise LongFocusError("There is no answer yet. Ask something first.")
        return self.answer


def _needed(given: str, usage: str) -> str:
    if not given:
        raise LongFocusError(f"That needs one more word: {usage}.")
    return given
