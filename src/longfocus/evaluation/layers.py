"""r_d of every candidate layer of a model that is not changed, and how much each would look into a memory at all.

    windows   of every document some are evaluated: their queries are kept, by layer, and the log-sum-exp of their
              scores on the window itself and on the --tokens before it
    pieces    of other documents are read once each, one after the other; every window whose document is another
              adds the log-sum-exp of its scores on them to that of its others, and the keys are forgotten

So the room that is needed does not grow with --tokens or --others: --queries vectors per window, layer and head.
"""

from collections.abc import Iterator, Sequence
from os import fsencode
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.evaluation.experiment import Record
from longfocus.evaluation.held_out import Document, HeldOut, evenly, held_out
from longfocus.evaluation.layers_attached import Asked, Candidates, Scored, candidates
from longfocus.hf.layers import attention_modules, longest_window
from longfocus.inference.prompts import starting_ids

if TYPE_CHECKING:
    from longfocus.evaluation.experiments.layers import LayersSettings
    from longfocus.evaluation.subject import Subject

DEFAULT_WINDOW = 2048
READ_TOKENS = 2048
"""Tokens of the windows that are read side by side, at most, or one window."""


class Window(NamedTuple):
    """One that is evaluated."""

    document: Document
    place: int


class Kept:
    """What all windows ask of one layer, and how much attention falls on what."""

    def __init__(self, asked: Sequence[Asked], own: Sequence[Tensor], levels: int) -> None:
        self.query = torch.cat([window.query for window in asked])  # (windows, heads, query, dim)
        self.window = torch.cat([window.window for window in asked])  # (windows, heads, query)
        self.own = torch.cat(list(own))
        self.others = self.own.new_full((levels, *self.own.shape), -torch.inf)
        """For every number of others the log-sum-exp of the scores on all of them."""

    def add(self, keys: Tensor, scored: Scored, is_seen: Tensor) -> None:
        """Let windows look at keys; `is_seen` `[levels, windows]` says which do, with which numbers of others."""
        looking = is_seen.any(0).nonzero()[:, 0].to(keys.device)
        found = scored.lse(self.query[looking], keys)
        for level, own in enumerate(is_seen[:, looking.cpu()].to(keys.device)):
            at = looking[own]
            self.others[level, at] = torch.logaddexp(self.others[level, at], found[own])

    def positive_mass(self, level: int) -> Tensor:
        """r_d, the mean over queries `[windows, heads]`."""
        return (self.own - self.others[level]).sigmoid().mean(-1)

    def memory_share(self, level: int) -> Tensor:
        """The share of the attention that would fall on the memory and not on the window `[windows, heads]`."""
        memory = torch.logaddexp(self.own, self.others[level])
        return (memory - self.window).sigmoid().mean(-1)


def measured(
    subject: "Subject", settings: "LayersSettings", tokens: int, seed: int
) -> Iterator[Record]:
    """A record for every evaluated window, layer and number of others."""
    subject.refuse_one_stream()
    window, layers = window_of(subject, settings.window), layers_of(subject, settings.layers)
    prefix = torch.tensor(starting_ids(subject.window_prefix, subject.tokenizer), dtype=torch.long)
    size, numbers = window - len(prefix), sorted(set(settings.others))
    data = held_out(settings.data, subject.tokenizer)
    chosen = data.chosen(tokens + size, settings.max_documents, seed)
    windows = [
        Window(document, place)
        for document in chosen
        for place in evenly(len(document.ids), tokens, size, settings.windows)
    ]
    pieces = pool(data, tokens, numbers[-1], seed)
    is_seen = seen(windows, pieces, numbers, seed)
    # nobody looks at the pieces of a document that is the only one measured
    pieces = [piece for piece, own in zip(pieces, is_seen, strict=True) if own.any()]
    subject.expected = len(windows) * (tokens + size) + len(pieces) * tokens
    with candidates(subject.model, layers, window, positions_of(subject, settings)) as attached:
        reader = _Reader(subject, attached, prefix, size)
        kept = reader.asked(windows, tokens, settings.queries, len(numbers))
        reader.look(kept, pieces, is_seen[is_seen.flatten(1).any(1)])
    yield from _records(windows, kept, numbers, subject.model.config.num_hidden_layers, window)


def _records(
    windows: Sequence[Window],
    kept: dict[int, Kept],
    numbers: Sequence[int],
    model_layers: int,
    window: int,
) -> Iterator[Record]:
    for layer, own in kept.items():
        for level, others in enumerate(numbers):
            masses = own.positive_mass(level).tolist()
            shares = own.memory_share(level).tolist()
            for place, mass, share in zip(windows, masses, shares, strict=True):
                yield {
                    "document": place.document.name,
                    "place": place.place,
                    "layer": layer,
                    "others": others,
                    "positive_mass": mass,
                    "memory_share": share,
                    "model_layers": model_layers,
                    "window_tokens": window,
                }


class _Reader:
    """Passes of the attached model, timed and told about."""

    def __init__(self, subject: "Subject", attached: Candidates, prefix: Tensor, size: int) -> None:
        self.subject, self.attached, self.prefix, self.size = subject, attached, prefix, size

    def asked(
        self, windows: Sequence[Window], tokens: int, queries: int, levels: int
    ) -> dict[int, Kept]:
        """What all windows ask, by layer, and how it scores on the windows and on the tokens before them."""
        count = min(queries, self.size)
        places = len(self.prefix) + ((torch.arange(count) + 0.5) * self.size / count).long()
        asked: dict[int, list[Asked]] = {}
        own: dict[int, list[Tensor]] = {}
        for (_, ids), begin in windows:
            with self.subject.costs.timed("answering"):
                window = torch.cat([self.prefix, ids[begin : begin + self.size]])
                now = self.attached.queries(window, places)
            self.subject.advance(self.size)
            found: dict[int, Tensor] = {}
            for keys in self.read(ids[begin - tokens : begin]):
                for layer, key in keys.items():
                    lse = self.attached.scored[layer].lse(now[layer].query, key)
                    before = found.get(layer)
                    found[layer] = lse if before is None else torch.logaddexp(before, lse)
            for layer, lse in found.items():
                asked.setdefault(layer, []).append(now[layer])
                own.setdefault(layer, []).append(lse)
        kept = {layer: Kept(asked[layer], own[layer], levels) for layer in sorted(asked)}
        self.subject.costs.memory_bytes = sum(layer.query.nbytes for layer in kept.values())
        return kept

    def look(self, kept: dict[int, Kept], pieces: Sequence["Piece"], is_seen: Tensor) -> None:
        """Read the pieces, and let the windows look at them."""
        for piece, own in zip(pieces, is_seen, strict=True):
            for keys in self.read(piece.ids):
                with self.subject.costs.timed("answering"):
                    for layer, key in keys.items():
                        kept[layer].add(key, self.attached.scored[layer], own)

    def read(self, ids: Int[Tensor, " tokens"]) -> Iterator[dict[int, Tensor]]:
        """Keys of a text by layer, of a few windows at a time."""
        whole = len(ids) // self.size * self.size
        # nothing split is one piece of nothing
        rows = list(ids[:whole].view(-1, self.size).split(self.rows_together)) if whole else []
        rows += [ids[whole:][None]] if whole < len(ids) else []
        for some in rows:
            with self.subject.costs.timed("reading"):
                prefixed = torch.cat([self.prefix.expand(len(some), -1), some], 1)
                keys = self.attached.keys(prefixed, len(self.prefix))
            yield keys
            self.subject.advance(some.numel())

    @property
    def rows_together(self) -> int:
        return max(1, READ_TOKENS // self.size)


class Piece(NamedTuple):
    """Of a document that may lie beside others."""

    document: str
    ids: Int[Tensor, " tokens"]
    turn: int
    """How many pieces of its document come before it."""


def pool(data: HeldOut, tokens: int, others: int, seed: int) -> list[Piece]:
    """Pieces of so many tokens, so that `others` of them belong to other documents, whichever the own one is.

    Of every document one at a drawn place; more of them only where there are not enough documents.
    """
    documents = data.chosen(tokens, others + 1, seed)
    drawn = [
        np.random.default_rng([seed, *fsencode(document.name)]).permutation(
            len(document.ids) // tokens
        )
        for document in documents
    ]
    found: list[Piece] = []
    for turn in range(max(map(len, drawn))):
        for (name, ids), order in zip(documents, drawn, strict=True):
            if len(found) - turn - 1 < others and turn < len(order):
                begin = int(order[turn]) * tokens
                found.append(Piece(name, ids[begin : begin + tokens], turn))
    of_one = [sum(piece.document == name for piece in found) for name, _ in documents]
    if len(found) - max(of_one) < others:
        raise LongFocusError(
            f"--data has no {others} pieces of {tokens:,} tokens of other documents. Give fewer --others, shorter "
            "--tokens or more documents."
        )
    return found


def seen(
    windows: Sequence[Window], pieces: Sequence[Piece], numbers: Sequence[int], seed: int
) -> Tensor:
    """`[pieces, numbers, windows]`: which pieces are among so many others of a window.

    In an order drawn for every document, in which a second piece of a document comes after the first of all; more
    others hold what fewer do.
    """
    found = torch.zeros(len(pieces), len(numbers), len(windows), dtype=torch.bool)
    for place, window in enumerate(windows):
        name = window.document.name
        drawn = np.random.default_rng([seed, 1, *fsencode(name)]).permutation(len(pieces))
        order = [int(number) for number in drawn if pieces[number].document != name]
        order.sort(key=lambda number: pieces[number].turn)
        for level, others in enumerate(numbers):
            found[order[:others], level, place] = True
    return found


def window_of(subject: "Subject", asked: int | None) -> int:
    """Tokens of a window: as asked, the memory's, or the model's positions, at most 2048."""
    longest = longest_window(subject.model.config)
    if asked is None and subject.has_memory:
        asked = subject.window
    window = min(longest or DEFAULT_WINDOW, DEFAULT_WINDOW) if asked is None else asked
    least = 2 + len(starting_ids(subject.window_prefix, subject.tokenizer))
    if window < least or (longest is not None and window > longest):
        raise LongFocusError(
            f"--window {window} cannot be used with this model. Allowed are {least} to {longest or 'any number of'} "
            "tokens, as far as its positions reach. Give another, or leave it out."
        )
    return window


def layers_of(subject: "Subject", asked: Sequence[int]) -> list[int]:
    """The candidates: those that are asked for, or all layers with attention."""
    there = sorted(attention_modules(subject.model))
    if wrong := sorted(set(asked) - set(there)):
        raise LongFocusError(
            f"--layers {' '.join(map(str, wrong))}: this model has attention in the layers {_told(there)}. Choose "
            "among them, or leave it out for all."
        )
    return sorted(set(asked)) or there


def positions_of(subject: "Subject", settings: Any) -> str:
    """A model that has a memory says itself where its keys stand."""
    return subject.model.focus.config.positions if subject.has_memory else settings.positions


def _told(layers: Sequence[int]) -> str:
    is_whole = list(layers) == list(range(len(layers)))
    return f"0 to {len(layers) - 1}" if is_whole else ", ".join(map(str, layers))
