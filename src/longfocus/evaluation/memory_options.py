"""With which memory an experiment runs; every field is an option of `longfocus evaluate`. Imports no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from longfocus.config import Search


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How the memory is searched and kept; what is left out is as the model says."""

    search: Search | None = None
    """dense, clustered, or exact and faiss for the best --top-k; the default is the model's."""
    top_k: int | None = None
    """Memory keys per query and head under --search exact and faiss."""
    retain: float | None = None
    """Share of the attention on the memory that --search clustered keeps."""
    index: str | None = None
    """FAISS index factory string for --search faiss, such as Flat or HNSW32."""
    memory_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Number type of the memory; the default is the model's."""
    memory_gib: float | None = None
    """GiB of keys and values in memory at most; the rest goes to files without a name."""
    spill_folder: Path | None = None
    """Folder for them; the default is the system's for temporary files."""

    @property
    def of_session(self) -> dict[str, Any]:
        """The arguments of `Session` that they stand for."""
        return {
            "search": self.search,
            "top_k": self.top_k,
            "retain": self.retain,
            "index": self.index,
            "memory_dtype": self.memory_dtype,
            "memory_budget": None if self.memory_gib is None else int(self.memory_gib * 2**30),
            "spill_folder": self.spill_folder,
        }

    def to_dict(self) -> dict[str, Any]:
        """All that may change a row; where the files lie does not."""
        return {name: value for name, value in asdict(self).items() if name != "spill_folder"}
