"""A library whose writer is killed at any moment holds whole documents only, each as before or as after.

    python benchmarks/kill.py [--times 200] [--seed 0] [--reading]

A process adds, replaces, renames and removes documents of about a megabyte in a loop, and says before and after each
what it does. It is killed with SIGKILL at a random moment; then every document present is opened and verified, and the
library must be that before or after the one change that was going on. The next process goes on with it.

With --reading the process reads files of the standard library into a library instead, as `longfocus read` does, with
the shipped model "code". It is killed and started again until it is done, and begins anew until it was killed often
enough. Every file must be that of a reading that was left alone, byte for byte, and no step that was told as finished
may be made again. Exits with 1 if anything is wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import logging

import longfocus
from longfocus import DocumentMemory, LongFocusError
from longfocus.inference.collect import read_into
from longfocus.memory import Part
from longfocus.memory.description import ReadWith
from longfocus.memory.library import Library

TOKENS, KV_HEADS, DIM = 1000, 2, 64
NAMES, VERSIONS = 6, 4
LONGEST_LIFE_SECONDS = 0.25
SOURCES = [Path(argparse.__file__).parent / name for name in ("argparse.py", "json", "tarfile.py")]

State = dict[str, str]
"""What the documents hold, by name."""


class Change(NamedTuple):
    """One thing that is done to a library."""

    what: str
    """`add` (also over what is there), `rename` or `remove`."""
    name: str
    other: str
    """What is added, or the new name."""

    def applied(self, state: State) -> State:
        rest = {name: value for name, value in state.items() if name != self.name}
        if self.what == "add":
            return {**rest, self.name: self.other}
        return {**rest, self.other: state[self.name]} if self.what == "rename" else rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reading", action="store_true")
    options = parser.parse_args()
    # a forked process could not wake threads
    torch.set_num_threads(1)
    kill = kill_readers if options.reading else kill_writers
    sys.exit(0 if kill(options.times, random.Random(options.seed)) else 1)


def kill_writers(times: int, moments: random.Random) -> bool:
    """Whether a library was right after each of so many kills."""
    documents = [document(version) for version in range(VERSIONS)]
    done: Counter[str] = Counter()
    state: State = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Library(folder)
        for turn in range(times):
            seconds = moments.uniform(0, LONGEST_LIFE_SECONDS)
            action = partial(work, library, documents, random.Random(turn))
            told = killed_after(seconds, partial(finish, action))
            state = expected_after(told, state, content(library), done)
            done["unfinished files"] += len(list(library.folder.glob(".*")))
        library.add(documents[0].renamed("last"))
        left = [path.name for path in library.folder.glob(".*")]
    wrong = done.pop("wrong", 0)
    print(f"killed {times} times: {', '.join(f'{done[what]} {what}' for what in sorted(done))}")
    if left or wrong:
        print(f"WRONG: {wrong} libraries; left over at the end: {left}")
        return False
    print("every document was whole, and every library as before or as after its last change")
    return True


def kill_readers(times: int, moments: random.Random) -> bool:
    """Whether libraries are as if left alone that were read by processes which were killed so often in all."""
    logging.disable_progress_bar()
    model, tokenizer = longfocus.from_pretrained("code"), longfocus.tokenizer("code")

    def read(folder: Path, tell: int) -> None:
        def report(tokens: int, is_all: bool) -> None:
            os.write(tell, b"" if is_all else b'["step"]\n')

        for source in SOURCES:
            read_into(Library(folder), model, tokenizer, source, progress=report)

    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        with tempfile.TemporaryFile() as told_alone:
            read(whole, told_alone.fileno())
            told_alone.seek(0)
            needed = len(told_alone.readlines())
        while done["kills"] < times:
            error = read_until_done(partial(read, parts), moments, done)
            done["libraries"] += 1
            done["steps needed"] += needed
            if error is None and bytes_of(parts) != bytes_of(whole):
                error = f"{sorted(bytes_of(parts))} differ from {sorted(bytes_of(whole))}"
            if error is not None or done["steps told"] > done["steps needed"]:
                print(f"WRONG: {error or 'steps were made again'}; {dict(done)}")
                return False
            shutil.rmtree(parts)
    kills = done.pop("kills")
    print(f"killed {kills} times: {', '.join(f'{done[what]} {what}' for what in sorted(done))}")
    print(
        "every file was that of a reading that was left alone, and no finished step was made again"
    )
    return True


def read_until_done(
    read: Callable[[int], None], moments: random.Random, done: Counter[str]
) -> str | None:
    """Start a reader again after each kill, until one has finished; returns the error of one that failed."""
    while True:
        seconds = moments.uniform(0, 2 * LONGEST_LIFE_SECONDS)
        told = killed_after(seconds, partial(finish, read))
        done["steps told"] += told.count(["step"])
        if told and told[-1][0] == "error":
            return told[-1][1]
        if told[-1:] == [["done"]]:
            return None
        done["kills"] += 1


def finish(action: Callable[[int], object], tell: int) -> None:
    """Do something, and say how it ended."""
    try:
        action(tell)
        os.write(tell, b'["done"]\n')
    except BaseException:
        os.write(tell, (json.dumps(["error", traceback.format_exc()]) + "\n").encode())
    finally:
        os._exit(1)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of all files, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def document(version: int) -> DocumentMemory:
    generator = torch.Generator().manual_seed(version)
    key, value = torch.randn(2, 1, KV_HEADS, TOKENS, DIM, generator=generator).unbind(0)
    text = str(version) * TOKENS
    return DocumentMemory.of(
        name=f"version {version}",
        layers={1: Part(key, value)},
        token_ids=torch.full((TOKENS,), version),
        read_with=ReadWith("none", 256),
        text=text,
        offsets=torch.arange(TOKENS)[:, None] + torch.tensor([0, 1]),
    )


def held(found: DocumentMemory) -> str:
    """Of the content, whatever the name."""
    return f"{found.text} {found.layers[1].key.sum().item()}"[-24:]


def content(library: Library) -> State:
    """Every document, or what is wrong with it."""
    state = {}
    for name in library.names():
        try:
            found = library.open(name)
            found.verify()
            state[name] = held(found)
        except LongFocusError as error:
            state[name] = str(error)
    return state


def killed_after(seconds: float, action: Callable[[int], object]) -> list[list[str]]:
    """What a process that does something said, line by line, until it was killed after so long."""
    reads, writes = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reads)
        action(writes)
    os.close(writes)
    time.sleep(seconds)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    with open(reads) as pipe:
        return [json.loads(line) for line in pipe]


def work(
    library: Library, documents: list[DocumentMemory], chance: random.Random, tell: int
) -> None:
    """Change the library at random, for ever."""
    while True:
        there = library.names()
        free = sorted({f"name/{n}" for n in range(NAMES)} - set(there))
        what = chance.choice(["add", "add", "rename", "remove"])
        added = chance.choice(documents)
        name = chance.choice(there + free if what == "add" else there or [""])
        other = held(added) if what == "add" else chance.choice(free or [""])
        if not name or (what == "rename" and not other):
            continue
        os.write(tell, (json.dumps(Change(what, name, other)) + "\n").encode())
        if what == "add":
            library.add(added.renamed(name), replaces=True)
        elif what == "rename":
            library.rename(name, other)
        else:
            library.remove(name)
        os.write(tell, b'["done"]\n')


def expected_after(told: list[list[str]], state: State, found: State, done: Counter[str]) -> State:
    """The library as it must be after what the writer said; it may have finished its last change, or not."""
    pending = None
    for line in told:
        if line == ["done"]:
            assert pending is not None
            state, pending = pending.applied(state), None
            done["changes"] += 1
        elif line[0] == "error":
            done["wrong"] += 1
            print(f"WRONG: {pending} raised {line[1]}")
        else:
            pending = Change(*line)
    done["within a change"] += pending is not None
    allowed = [state] if pending is None else [state, pending.applied(state)]
    if found not in allowed:
        done["wrong"] += 1
        print(f"WRONG: after {told[-3:]} the library holds {found}, and should hold {state}")
    return found


if __name__ == "__main__":
    main()
