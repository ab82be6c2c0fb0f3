"""The memory of one text: read once, never changed, kept as one file, shared by any number of sessions and batch rows.

    document = longfocus.read_document(model, tokenizer, Path("book.txt"))
    document.save("book.safetensors")
    document = longfocus.DocumentMemory.load("book.safetensors")     # mapped: nothing is read before it is used

The file (docs/format.md) is made of what is here: per memory layer keys and values, the token ids, the text and the
characters of every token, and a `Description`.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from longfocus.errors import LongFocusError
from longfocus.memory import store
from longfocus.memory.base import Part
from longfocus.memory.converted import converted
from longfocus.memory.description import DTYPES, Description, ReadWith
from longfocus.memory.document_file import Content, open_document, tensors_of
from longfocus.memory.header import canonical
from longfocus.memory.parts import SourcePart
from longfocus.memory.sorting import cluster
from longfocus.memory.tensor_file import TensorFile, file_checksum, write_tensors


@dataclass(frozen=True, eq=False)
class DocumentMemory:
    """Keys and values of every memory layer, and the text that they came from."""

    description: Description
    layers: Mapping[int, Part] = field(repr=False)
    """Per memory layer one line of pairs `[1, kv_heads, tokens, head_dim]`, keys as if at a window's start."""
    content: Content = field(repr=False)
    file: TensorFile | None = field(default=None, repr=False)
    """The open file that all of it lies in."""

    @classmethod
    def of(
        cls,
        *,
        name: str,
        layers: Mapping[int, Part],
        token_ids: Int[Tensor, " tokens"],
        read_with: ReadWith,
        text: str | None = None,
        offsets: Int[Tensor, "tokens 2"] | None = None,
        parts: tuple[SourcePart, ...] = (),
        metadata: Mapping[str, str] | None = None,
        is_together: bool = False,
    ) -> "DocumentMemory":
        """A document in memory, described by what it is made of."""
        first, clusters = next((part.key, part.clusters) for part in layers.values())
        encoded = None if text is None else text.encode()
        description = Description(
            name=name,
            tokens=len(token_ids),
            dtype=str(first.dtype).removeprefix("torch."),
            memory_layers=tuple(sorted(layers)),
            kv_heads=first.shape[1],
            head_dim=first.shape[3],
            read_with=read_with,
            source_sha256=None if encoded is None else sha256(encoded).hexdigest(),
            source_characters=len(text or ""),
            parts=parts,
            metadata=dict(metadata or {}),
            is_together=is_together,
            clusters=0 if clusters is None else len(clusters),
        )
        utf8 = None if not encoded else torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        narrow = torch.int32 if description.source_characters < 2**31 else torch.int64
        content = Content(
            token_ids.to(torch.int32), utf8, None if offsets is None else offsets.to(narrow)
        )
        return cls(description, dict(layers), content)

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.description.tokens

    @property
    def parts(self) -> tuple[SourcePart, ...]:
        """The texts that it was put together from; empty if it was one."""
        return self.description.parts

    @property
    def metadata(self) -> Mapping[str, str]:
        """The user's own entries."""
        return self.description.metadata

    @property
    def path(self) -> Path | None:
        """Its file; None if it is in memory only."""
        return None if self.file is None else self.file.path

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(
            tensor.nbytes
            for part in self.layers.values()
            for tensor in (part.key, part.value, *(part.scales or ()))
        )

    @cached_property
    def order(self) -> str:
        """Documents sort by this; only those that are alike in everything have an equal one."""
        described = canonical(self.description.to_dict())
        if self.description.source_sha256 is not None:
            return described
        # token ids are described by their number only
        return described + sha256(self.token_ids.numpy().tobytes()).hexdigest()

    @cached_property
    def hash(self) -> str:
        """Equal for equal documents: of the file that `save` writes, or of the one that it lies in."""
        if self.file is not None:
            return self.file.header.checksum
        return file_checksum(tensors_of(self.content, self.layers), self.description.to_dict())

    @property
    def token_ids(self) -> Int[Tensor, " tokens"]:
        token_ids = self._checked("token_ids")
        if self.file is not None and token_ids.min() < 0:
            raise self._altered("token_ids", "they are negative")
        return token_ids.long()

    @property
    def offsets(self) -> Int[Tensor, "tokens 2"] | None:
        """First and past-the-end character of every token in `text`; None if it was read from token ids."""
        if self.content.offsets is None:
            return None
        offsets = self._checked("offsets")
        if self.file is not None and not self._is_in_text:
            raise self._altered("offsets", "they point beyond the text")
        return offsets

    @cached_property
    def text(self) -> str | None:
        """The source; None if it was given as token ids."""
        if self.content.text is None:
            return None
        try:
            text = self._checked("text").numpy().tobytes().decode()
        except UnicodeDecodeError as error:
            raise self._altered("text", "it is not UTF-8") from error
        if len(text) != self.description.source_characters:
            raise self._altered("text", "it has another length than the header says")
        if sha256(text.encode()).hexdigest() != self.description.source_sha256:
            raise self._altered("text", "it has another hash than the header says")
        return text

    def part(self, layer: int, device: torch.device) -> Part:
        """The pairs of a memory layer on a device; copied there once."""
        place = (layer, device)
        if place not in self._on_devices:
            self._check_model()
            self._on_devices[place] = self.layers[layer].to(device)
        return self._on_devices[place]

    def span(self, position: int) -> tuple[int, int]:
        """Characters [start, end) of the token at `position` in `text`."""
        offsets = self.offsets
        if offsets is None:
            raise LongFocusError(
                f"Document {self.name!r} was read from token ids, or with a slow tokenizer, and has no character "
                "offsets. Read its text with a fast tokenizer."
            )
        start, end = offsets[position].tolist()
        return start, end

    def line(self, position: int) -> int:
        """Line number, from 1, of the token at `position` in `text`."""
        return self.line_of(self.span(position)[0])

    def line_of(self, character: int) -> int:
        """Line number, from 1, of a character of `text`."""
        return 1 + bisect_right(self._line_ends, character - 1)

    def part_of(self, character: int) -> SourcePart | None:
        """The text that a character belongs to, if the document was put together from several."""
        place = bisect_right(self._part_starts, character) - 1
        return self.parts[place] if place >= 0 and character < self.parts[place].end else None

    def renamed(self, name: str) -> "DocumentMemory":
        return replace(self, description=replace(self.description, name=name))

    def to(self, dtype: str) -> "DocumentMemory":
        """The document with keys and values in another type: a name of torch, or "int8" with a scale per key."""
        if dtype not in DTYPES:
            raise LongFocusError(
                f"The memory of a document cannot be of type {dtype!r}. Give the name of one of: {', '.join(DTYPES)}."
            )
        if dtype == self.description.dtype:
            return self
        self._check_model()
        self.verify()
        layers = {layer: converted(part, dtype) for layer, part in self.layers.items()}
        return replace(
            self,
            description=replace(self.description, dtype=dtype),
            layers=layers,
            file=None,
        )

    def clustered(self) -> "DocumentMemory":
        """The document with its pairs sorted for search="clustered"; as it is if that is done, or not worth it."""
        if self.description.clusters or self.tokens < store.SORTED_FROM:
            return self
        self._check_model()
        self.verify()
        layers = {layer: cluster(part) for layer, part in self.layers.items()}
        (count,) = {len(part.clusters or ()) for part in layers.values()}
        description = replace(self.description, clusters=count)
        return replace(self, description=description, layers=layers, file=None)

    def save(self, path: str | Path, *, replaces: bool = True) -> None:
        """Write one file, whole or not at all; the same document gives the same bytes.

        Raises LongFocusError if it cannot be written; what was there before stays.
        """
        self.verify()
        write_tensors(
            Path(path),
            tensors_of(self.content, self.layers),
            self.description.to_dict(),
            replaces=replaces,
        )

    @classmethod
    def load(cls, path: str | Path) -> "DocumentMemory":
        """Open a file by mapping it: nothing but its header is read.

        Its data are verified when they are first used. Raises LongFocusError, then or now, for a file that is damaged,
        altered, of a newer format, or none at all.
        """
        return cls(*open_document(Path(path)))

    def verify(self) -> None:
        """Raise LongFocusError unless every byte of its file is what was written, and makes sense."""
        for part in self.layers.values():
            part.verify()
        # each is checked as it is made
        _ = self.token_ids, self.text, self.offsets

    def _check_model(self) -> None:
        """Whoever wrote a file could leave out the model; its keys must not reach another one unnoticed."""
        if self.file is not None and not self.description.read_with.model:
            raise LongFocusError(
                f"{self.path} does not say which model it was read by, so no model can use it. Read the text again."
            )

    def _checked(self, name: str) -> Tensor:
        if self.file is not None:
            self.file.verify(name)
        return getattr(self.content, name)

    @cached_property
    def _on_devices(self) -> dict[tuple[int, torch.device], Part]:
        return {}

    @cached_property
    def _is_in_text(self) -> bool:
        offsets = self._checked("offsets")
        first, last = offsets.aminmax()
        return bool(
            first >= 0
            and last <= self.description.source_characters
            and (offsets[:, 0] <= offsets[:, 1]).all()
        )

    @cached_property
    def _part_starts(self) -> list[int]:
        return [part.start for part in self.parts]

    @cached_property
    def _line_ends(self) -> list[int]:
        text, ends, place = self.text or "", [], -1
        while (place := text.find("\n", place + 1)) >= 0:
            ends.append(place)
        return ends

    def _altered(self, what: str, why: str) -> LongFocusError:
        return LongFocusError(
            f"{self.path or self.name} was altered: {why} ({what}). Copy the file again, or read the text again."
        )
