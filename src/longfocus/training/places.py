"""Where a recipe's model and tokenizer are: a folder, a shipped model, or a repository of the hub."""

from pathlib import Path

from longfocus.errors import LongFocusError
from longfocus.hf.pretrained import resolve


def place_of(name: str, option: str) -> str:
    """What transformers is to be asked for. Raises LongFocusError for a path where nothing is: the hub has no paths."""
    place = Path(resolve(name)).expanduser()
    if place.exists():
        return str(place)
    if _is_path(name):
        raise LongFocusError(
            f"There is no folder {name!r}, which {option} names. It may be a folder with a model, the name of a "
            "shipped model, or a repository of the hub such as Qwen/Qwen3-0.6B. Check the path."
        )
    return name


def _is_path(name: str) -> bool:
    """Whether it cannot be a repository of the hub, `name` or `owner/name`, or lies in a folder that is there."""
    parts = Path(name).parts
    is_written_as_one = name.startswith((".", "~")) or name.endswith("/") or "\\" in name
    return is_written_as_one or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())
