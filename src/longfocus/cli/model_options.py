"""The options by which `read`, `ask`, `chat` and `inspect` find a model, and what they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longfocus.config import Positions, Search
from longfocus.errors import LongFocusError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from longfocus.inference.session import Session
    from longfocus.memory.document import DocumentMemory


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and with which memory."""

    model: str
    """A folder, a hub id, or the name of a shipped model ("code")."""
    memory_layers: tuple[int, ...] = ()
    """Layers that get a memory, for a model that was saved without one."""
    window: int | None = None
    """Tokens of a window, for a model that was saved without memory."""
    positions: Positions = "window_start"
    """Rotary encoding in memory layers, for a model that was saved without memory."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number type of the weights; auto: that of the checkpoint, or float32 on a CPU that is slow with its 16 bits."""
    device: str | None = None
    """Such as cuda; the default is the first GPU if there is one, else the CPU."""
    window_prefix: str | None = None
    """bos: begin every window that is read with the tokenizer's BOS token. Also ids of tokens, such as 1 or 1,5."""

    @property
    def prefix(self) -> str | tuple[int, ...]:
        """What windows begin with, as `Session` takes it. Raises LongFocusError for other words."""
        given = self.window_prefix or ""
        words = given.replace(",", " ").split()
        if given != "bos" and not all(word.isascii() and word.isdigit() for word in words):
            raise LongFocusError(
                f"--window-prefix {given!r} is neither bos nor ids of tokens. Give bos, or numbers such as 1 or 1,5."
            )
        return given if given == "bos" else tuple(map(int, words))


@dataclass(frozen=True, kw_only=True)
class DocumentOptions:
    """What the model has in memory."""

    library: Path | None = None
    """A library that `longfocus read` made."""
    select: tuple[str, ...] = ()
    """Names or patterns of its documents; the default is all of them."""
    metadata: tuple[str, ...] = ()
    """Only documents with these entries, each KEY=PATTERN."""
    documents: tuple[Path, ...] = ()
    """Document files, of no library or of several."""
    read: tuple[Path, ...] = ()
    """Texts, folders, PDF or HTML files to read now."""
    search: Search | None = None
    """dense, clustered, or exact and faiss for the best --top-k; the default is the model's."""
    top_k: int | None = None
    """Memory keys per query and head under --search exact and faiss."""
    retain: float | None = None
    """Share of the attention on the memory that --search clustered keeps."""
    index: str | None = None
    """FAISS index factory string for --search faiss, such as Flat or HNSW32."""
    certify: bool | None = None
    """Prove for every query of --search clustered that it misses no more than 1 - --retain."""
    memory_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Number type of what is read and said now; the default is the model's."""
    memory_gib: float | None = None
    """GiB of memory at most for what is read or said now; the rest goes to files without a name."""
    spill_folder: Path | None = None
    """Folder for them; the default is the system's for temporary files."""


def load(options: ModelOptions) -> tuple[Any, Any]:
    """The model with its memory, and its tokenizer. Raises LongFocusError if it has none and none is asked for."""
    import longfocus

    model = load_model(options)
    return model, longfocus.tokenizer(options.model)


def load_model(options: ModelOptions, *, needs_memory: bool = True) -> Any:
    """The model with its memory, or the plain one if that is enough and it has none; it may have no tokenizer."""
    from transformers import logging

    import longfocus
    from longfocus.hf.pretrained import read_config, resolve
    from longfocus.hf.widened import remembering_in

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    refuse_missing_folder(options.model)
    device = _device(options.device)
    config = read_config(resolve(options.model))
    if getattr(config, "focus", None):
        if options.memory_layers or options.window:
            raise LongFocusError(
                f"{options.model} was saved with a memory of its own. Leave out --memory-layers and --window."
            )
        model: Any = longfocus.from_pretrained(options.model, dtype=options.dtype)
    elif not (needs_memory or options.memory_layers or options.window):
        model, _ = _plain(options, config, device)
    elif not options.memory_layers or options.window is None:
        raise LongFocusError(
            f"{options.model} was saved without a memory. Give --memory-layers and --window to attach one, such as "
            "--memory-layers 8 16 24 --window 2048, or train one: longfocus train continue --help."
        )
    else:
        model, narrow = _plain(options, config, device)
        focus = longfocus.FocusConfig(
            memory_layers=options.memory_layers, window=options.window, positions=options.positions
        )
        longfocus.attach(model, remembering_in(focus, narrow))
    return model.to(device)


def _plain(
    options: ModelOptions, config: Any, device: "torch.device"
) -> tuple[Any, "torch.dtype | None"]:
    """The model without memory, and the numbers of its checkpoint if it computes in wider ones."""
    from transformers import AutoModelForCausalLM

    from longfocus.hf.widened import narrow_type

    narrow = narrow_type(config, device) if options.dtype == "auto" else None
    dtype = options.dtype if narrow is None else "float32"
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval(), narrow


def _device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise LongFocusError(
            f"--device {name} cannot be used: {why}. Give cpu, or leave it out."
        ) from error


def refuse_missing_folder(model: str) -> None:
    """A path that is not there would be looked for on the hub, for long."""
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).exists():
        from longfocus.hf.pretrained import shipped_models

        raise LongFocusError(
            f"There is no folder {model}. Give the folder of a model, a hub id (OWNER/NAME), or a shipped model: "
            f"{', '.join(shipped_models())}."
        )


def open_session(
    model_options: ModelOptions, options: DocumentOptions, *, system: str | None = None
) -> "Session":
    """A session with the chosen documents, reading what is to be read."""
    from longfocus.inference.session import Session

    chosen = list(chosen_documents(options))
    model, tokenizer = load(model_options)
    session = Session(
        model,
        tokenizer,
        documents=chosen,
        window_prefix=model_options.prefix,
        search=options.search,
        top_k=options.top_k,
        retain=options.retain,
        index=options.index,
        certify=options.certify,
        memory_dtype=options.memory_dtype,
        memory_budget=None if options.memory_gib is None else int(options.memory_gib * 2**30),
        spill_folder=options.spill_folder,
        system=system,
    )
    for path in options.read:
        session.read(path)
    return session


def chosen_documents(options: DocumentOptions) -> "Iterable[DocumentMemory]":
    from longfocus.memory.document import DocumentMemory
    from longfocus.memory.library import Library

    if options.library is None:
        if options.select or options.metadata:
            raise LongFocusError("--select and --metadata choose from a library. Give --library.")
    else:
        if not options.library.is_dir():
            raise LongFocusError(
                f"There is no library {options.library}. Make one: longfocus read FILES... --library "
                f"{options.library} --model ..."
            )
        library = Library(options.library)
        chosen = library.select(*options.select, **entries(options.metadata))
        if not chosen:
            told = " ".join(options.metadata)
            why = f"no document with --metadata {told}" if len(library) else "no document yet"
            raise LongFocusError(
                f"The library {options.library} has {why}. `longfocus inspect {options.library}` shows what it has, "
                "and `longfocus read` adds more."
            )
        yield from chosen
    for path in options.documents:
        yield DocumentMemory.load(path)


def refuse_no_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise LongFocusError(f"--max-new-tokens must be at least 1. Got {max_new_tokens}.")


def entries(given: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE words as a mapping."""
    if wrong := [word for word in given if not word.partition("=")[0] or "=" not in word]:
        raise LongFocusError(
            f"--metadata takes KEY=VALUE. Got {wrong[0]!r}. Such as --metadata language=en."
        )
    return dict(word.split("=", 1) for word in given)
