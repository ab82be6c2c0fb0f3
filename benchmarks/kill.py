"""A library whose writer is killed at any moment holds whole documents only, each as before or as after.

    python benchmarks/kill.py [--times 200] [--seed 0]

A process adds, replaces, renames and removes documents of about a megabyte in a loop, and says before and after each
what it does. It is killed with SIGKILL at a random moment; then every document present is opened and verified, and the
library must be that before or after the one change that was going on. The next process goes on with it. Exits with 1
if anything is wrong.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from typing import NamedTuple

import torch

from longfocus import DocumentMemory, LongFocusError
from longfocus.memory import Part
from longfocus.memory.description import ReadWith
from longfocus.memory.library import Library

TOKENS, KV_HEADS, DIM = 1000, 2, 64
NAMES, VERSIONS = 6, 4
LONGEST_LIFE_SECONDS = 0.25

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
    options = parser.parse_args()
    # a forked process could not wake threads
    torch.set_num_threads(1)
    moments = random.Random(options.seed)
    documents = [document(version) for version in range(VERSIONS)]
    done: Counter[str] = Counter()
    state: State = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Library(folder)
        for turn in range(options.times):
            seconds = moments.uniform(0, LONGEST_LIFE_SECONDS)
            told = killed_after(seconds, library, documents, seed=turn)
            state = expected_after(told, state, content(library), done)
            done["unfinished files"] += len(list(library.folder.glob(".*")))
        library.add(documents[0].renamed("last"))
        left = [path.name for path in library.folder.glob(".*")]
    wrong = done.pop("wrong", 0)
    print(
        f"killed {options.times} times: {', '.join(f'{done[what]} {what}' for what in sorted(done))}"
    )
    if left or wrong:
        print(f"WRONG: {wrong} libraries; left over at the end: {left}")
        sys.exit(1)
    print("every document was whole, and every library as before or as after its last change")


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


def killed_after(
    seconds: float, library: Library, documents: list[DocumentMemory], seed: int
) -> list[list[str]]:
    """What a writer said, line by line, that was killed after so long."""
    reads, writes = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(reads)
        work(library, documents, random.Random(seed), writes)
    os.close(writes)
    time.sleep(seconds)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    with open(reads) as pipe:
        return [json.loads(line) for line in pipe]


def work(
    library: Library, documents: list[DocumentMemory], chance: random.Random, tell: int
) -> None:
    """Change the library at random, for ever."""
    try:
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
    except BaseException:
        os.write(tell, (json.dumps(["error", traceback.format_exc()]) + "\n").encode())
    finally:
        os._exit(1)


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
