"""Documents of streamed sources: tokenised while training, nothing kept, shuffled in a buffer, mixed by weight.

For what is too large for a cache. There is iteration only, so a saved place is found again by reading up to it. Every
share of ranks and workers reads all records and tokenises its own: every n-th of each source.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.training.documents import Document
from longfocus.training.encode import Encoder
from longfocus.training.mixture import Order, check_order
from longfocus.training.readers import open_reader
from longfocus.training.records import LeftOut
from longfocus.training.shards import Shard, check_ranks, this_shard
from longfocus.training.sources import Source, check_mixture
from longfocus.training.tokenised import Report, document_of, no_documents, prepare


class Stream:
    """Documents of all sources, the same for the same seed; each loop begins at the beginning.

    Tokens of the sources are as their weights at every moment, up to one document. With `epochs` it ends when every
    source has come so many times, else never. Sources with and without `stream` are read alike.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase,
        seed: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        vocab_size: int | None = None,
        append_eos: bool = True,
        prepend_bos: bool = False,
        buffer_documents: int = 1000,
    ) -> None:
        check_mixture(sources)
        check_ranks(rank, world_size)
        check_order(seed, epochs)
        if len(sources) > 1 and sources[0].weight is None:
            raise LongFocusError(
                "Streamed sources have no known sizes to mix them by. Got no weights. Give one for each (--weights, or "
                "weight= of a Source)."
            )
        if buffer_documents < 1:
            raise LongFocusError(
                f"buffer_documents must be at least 1. Got {buffer_documents}. 1 keeps the order of the source."
            )
        self.sources, self.seed, self.epochs = tuple(sources), seed, epochs
        self._rank, self._world_size, self._buffer_documents = rank, world_size, buffer_documents
        self._encoder = Encoder(
            tokenizer, vocab_size=vocab_size, append_eos=append_eos, prepend_bos=prepend_bos
        )
        self._readers = [open_reader(source) for source in sources]

    def __iter__(self) -> Iterator[Document]:
        shard = this_shard(self._rank, self._world_size)
        lanes = {place: self._lane(place, shard) for place in range(len(self.sources))}
        tokens, epochs = dict.fromkeys(lanes, 0), dict.fromkeys(lanes, 0)
        while lanes and (self.epochs is None or min(epochs.values()) < self.epochs):
            place = min(lanes, key=lambda lane: tokens[lane] / (self.sources[lane].weight or 1.0))
            document = next(lanes[place])
            if document is not None:
                tokens[place] += len(document.tokens)
                yield document
            elif tokens[place]:
                epochs[place] += 1
            else:  # this share has nothing of the source
                del lanes[place], epochs[place]

    def _lane(self, place: int, shard: Shard) -> Iterator[Document | None]:
        """The source's documents, epoch after epoch; None ends each."""
        epoch, is_empty = 0, False
        while not is_empty:
            is_empty = True
            left_out = LeftOut()
            random = np.random.Generator(np.random.PCG64([self.seed, place, epoch, shard.index]))
            for document in self._shuffled(self._documents(place, shard, left_out), random):
                is_empty = False
                yield document
            if is_empty and shard.count == 1:
                raise LongFocusError(no_documents(self.sources[place], left_out))
            yield None
            epoch += 1

    def _documents(self, place: int, shard: Shard, left_out: LeftOut) -> Iterator[Document]:
        source = self.sources[place]
        records = shard.of(self._readers[place].records(left_out))
        for encoded, _ in self._encoder.encode(records, left_out):
            if len(encoded.tokens) < source.min_tokens:
                left_out.add(
                    source.path, f"{len(encoded.tokens)} tokens, min_tokens is {source.min_tokens}"
                )
            else:
                yield document_of(encoded, source)

    def _shuffled(
        self, documents: Iterator[Document], random: np.random.Generator
    ) -> Iterator[Document]:
        """Every document once, each drawn from the next `buffer_documents`."""
        buffer: list[Document] = []
        for document in documents:
            if len(buffer) < self._buffer_documents:
                buffer.append(document)
            if len(buffer) == self._buffer_documents:
                yield buffer.pop(int(random.integers(len(buffer))))
        for number in random.permutation(len(buffer)):
            yield buffer[number]


def open_documents(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    vocab_size: int | None = None,
    report: Report = lambda what, done, total: None,
) -> Order | Stream:
    """The documents of the sources in training order: a corpus kept in `cache`, or streamed if all sources say so."""
    check_mixture(sources)
    streamed = [source.label for source in sources if source.stream]
    if not streamed:
        corpus = prepare(sources, tokenizer, cache, vocab_size, report=report)
        return Order(corpus, seed, epochs, rank, world_size)
    if len(streamed) < len(sources):
        raise LongFocusError(
            f"Either all sources are streamed or none. Got stream=True for {', '.join(map(repr, streamed))} only. "
            "Stream all of them, or keep all."
        )
    return Stream(sources, tokenizer, seed, epochs, rank, world_size, vocab_size=vocab_size)
