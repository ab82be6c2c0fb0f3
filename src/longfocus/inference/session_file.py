"""A session as one file: the conversation's tokens, messages, window and own memory, and references to its documents.

The file is of the same kind as that of a document (memory/tensor_file.py): checked, written whole, never unpickled.
"""

import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.hf.cache import FocusCache
from longfocus.hf.cache_state import cache_state, restore_cache
from longfocus.hf.fingerprint import model_fingerprint, tokenizer_fingerprint
from longfocus.hf.layers import kv_heads_and_dim
from longfocus.hf.model import FocusMixin
from longfocus.inference.conversation import Conversation
from longfocus.memory.document import DocumentMemory
from longfocus.memory.library import Library
from longfocus.memory.tensor_file import TensorFile, write_tensors

FORMAT = "longfocus session"
VERSION = 1
IDS = "ids"


class Saved(NamedTuple):
    """What a file held."""

    documents: list[DocumentMemory]
    conversation: Conversation
    settings: dict[str, Any]


def save(
    path: Path,
    model: FocusMixin,
    tokenizer: PreTrainedTokenizerBase | None,
    documents: list[DocumentMemory],
    conversation: Conversation,
    settings: dict[str, Any],
) -> list[DocumentMemory]:
    """Write a session; returns its documents, all of which have files then."""
    documents = [_kept(document, path) for document in documents]
    tensors, facts = cache_state(conversation.cache)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": model_fingerprint(model, every_layer=True),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "config": conversation.cache.config.to_dict(),
        "settings": settings,
        "messages": list(conversation.messages),
        "cache": facts,
        "documents": [
            {"name": d.name, "hash": d.hash, "path": os.path.relpath(d.path or "", path.parent)}
            for d in documents
        ],
    }
    ids = torch.tensor(conversation.ids, dtype=torch.int32)
    write_tensors(path, {**tensors, IDS: ids}, metadata)
    return documents


def load(
    path: Path,
    model: FocusMixin,
    tokenizer: PreTrainedTokenizerBase | None,
    documents: Iterable[DocumentMemory],
) -> Saved:
    """Open a session; raises LongFocusError if it does not fit the model, the tokenizer, or its documents."""
    file = TensorFile(path)
    for name in file.header.entries:
        # a conversation is small beside its documents
        file.verify(name)
    try:
        given = dict(file.header.metadata)
        _check_format(path, given)
        _check_reader(path, given, model, tokenizer)
        cache = FocusCache(model, config=FocusConfig.from_dict(given["config"]))
        tensors = {name: file.tensor(name) for name in file.header.entries}
        tokens = tensors.pop(IDS)
        if tokens.dim() != 1 or tokens.is_floating_point():
            raise ValueError(f"ids of shape {tuple(tokens.shape)}")
        ids = tuple(tokens.tolist())
        restore_cache(cache, tensors, given["cache"], kv_heads_and_dim(model.config))
        # the last token of an answer was generated and not yet read
        if max(len(ids) - 1, 0) != cache.get_seq_length():
            raise ValueError(f"{len(ids)} ids for {cache.get_seq_length()} tokens")
        messages = tuple({"role": m["role"], "content": m["content"]} for m in given["messages"])
        references = [(d["name"], d["hash"], d["path"]) for d in given["documents"]]
        if not all(isinstance(word, str) for own in references for word in own):
            raise ValueError("documents that are no text")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, LongFocusError):
            raise
        raise LongFocusError(
            f"{path} is no session, or was altered: its description makes no sense ({error}). Copy the file again."
        ) from error
    known = {document.hash: document for document in documents}
    found = [
        known[checksum].renamed(name) if checksum in known else _find(path, name, checksum, place)
        for name, checksum, place in references
    ]
    return Saved(found, Conversation(cache, ids, messages), given["settings"])


def _kept(document: DocumentMemory, path: Path) -> DocumentMemory:
    """The document in a file: its own, or one in the library beside the session."""
    if document.path is not None and _is_there(document, document.path):
        return document
    library = Library(path.with_name(path.name + ".documents"))
    number, name = 1, document.name
    while name in library and library.open(name).hash != document.renamed(name).hash:
        number += 1
        name = f"{document.name} {number}"
    if name not in library:
        library.add(document.renamed(name))
    return library.open(name)


def _is_there(document: DocumentMemory, path: Path) -> bool:
    """Whether its file still is what was opened; a session may have outlived it."""
    try:
        return TensorFile(path).header.checksum == document.hash
    except LongFocusError:
        return False


def _find(path: Path, name: str, checksum: str, place: str) -> DocumentMemory:
    file = path.parent / place
    advice = "Give the document itself, or a library that has it, as documents=."
    if not file.is_file():
        raise LongFocusError(
            f"{path} needs the document {name!r}, which is no longer at {file}. {advice}"
        )
    document = DocumentMemory.load(file)
    if document.hash != checksum:
        raise LongFocusError(
            f"{path} needs the document {name!r} as it was, but {file} has changed since. {advice}"
        )
    return document.renamed(name)


def _check_format(path: Path, given: dict[str, Any]) -> None:
    if given.get("format") != FORMAT:
        raise LongFocusError(
            f"{path} is a {given.get('format')!r}, and not a {FORMAT}. Give a file that Session.save wrote."
        )
    if given["version"] > VERSION:
        raise LongFocusError(
            f"{path} was written in version {given['version']} of the format, and this LongFocus knows {VERSION}. "
            "Install a newer LongFocus."
        )


def _check_reader(
    path: Path,
    given: dict[str, Any],
    model: FocusMixin,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    config, own = FocusConfig.from_dict(given["config"]), model.focus.config
    # how a memory is searched and kept may differ from session to session
    free = {"search", "top_k", "retain", "index", "certify", "memory_dtype"}
    different = [
        entry.name
        for entry in fields(FocusConfig)
        if entry.name not in free and getattr(config, entry.name) != getattr(own, entry.name)
    ]
    if different:
        raise LongFocusError(
            f"{path} was saved with other settings of the memory: {', '.join(different)}. Attach the model as it was, "
            f"with {config}."
        )
    if given["model"] != model_fingerprint(model, every_layer=True):
        raise LongFocusError(
            f"{path} is a conversation with another model (other weights, settings or number type). Load the model "
            "that it was saved with."
        )
    theirs, ours = given["tokenizer"], tokenizer_fingerprint(tokenizer)
    if theirs is not None and ours is not None and theirs != ours:
        raise LongFocusError(
            f"{path} was saved with another tokenizer. Use the one that belongs to the model."
        )
