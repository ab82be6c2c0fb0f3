"""The C part of the package (native/*.c), compiled once by the machine's compiler and kept in the user's cache."""

import atexit
import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

SWITCH = "LONGFOCUS_NATIVE"
"""Environment variable; "0" keeps to torch."""

_SOURCE = Path(__file__).parent / "native" / "runs.c"
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# Not every compiler has OpenMP, not every processor wide vectors.
_MORE_FLAGS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ("-fopenmp-simd",), ())
_SECONDS = 120

_log = logging.getLogger(__name__)


@cache
def native_library() -> ctypes.CDLL | None:
    """The compiled functions; None, which is said once, where they are switched off or cannot be compiled."""
    if os.environ.get(SWITCH) == "0":
        return None
    # "ccache gcc" names a program and what it is given first
    name, *given = os.environ.get("CC", "").split() or ["cc"]
    compiler = shutil.which(name)
    if compiler is None:
        _log.info(
            "There is no C compiler here: clustered search visits clusters in torch, which is slower."
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled((compiler, *given))))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "%s could not be compiled or loaded (%s): clustered search visits clusters in torch, which is slower. "
            "Set %s=0 to say no more of it.",
            _SOURCE,
            error,
            SWITCH,
        )
        return None


def _compiled(compiler: tuple[str, ...]) -> Path:
    """The library of this source, compiler and processor."""
    sources = [file.read_bytes() for file in sorted(_SOURCE.parent.iterdir())]
    made_of = (*sources, _processor(), repr((compiler, _FLAGS, _MORE_FLAGS)).encode())
    name = f"runs-{sha256(b'|'.join(made_of)).hexdigest()[:20]}.so"
    folder = _folder()
    library = folder / name
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as room:
            made = Path(room) / name
            _compile(compiler, made)
            # whoever compiles at the same time writes the same
            made.replace(library)
    return library


def _compile(compiler: tuple[str, ...], made: Path) -> None:
    command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
    says = ""
    for extra in _MORE_FLAGS:
        done = subprocess.run(
            [*command, *extra],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode == 0:
            return
        says = done.stderr.strip()
    raise OSError(f"{shlex.join(compiler)} says: {says[-300:]}")


def _folder() -> Path:
    """Where compiled libraries are kept: the user's cache; if that is read-only, a folder until the process ends."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "longfocus"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="longfocus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _processor() -> bytes:
    """What tells processors apart for which code may differ: homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()} {platform.system()} {flags}".encode()
