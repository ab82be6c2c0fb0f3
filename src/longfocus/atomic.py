"""Files that appear whole or not at all: a temporary file, fsync, one rename.

Whatever kills a process, a file that is there is complete, and what it left half-written is found and removed by the
next writer. Several processes may write to one folder at a time, and any number may read. Imports no torch.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from longfocus.errors import LongFocusError

_PREFIX, _SUFFIX = ".longfocus-", ".part"
# What an error of the system is about, and what to do; other errors are told as they are.
_ADVICE = {
    errno.ENOSPC: "the disk is full. Make room and try again",
    errno.EDQUOT: "the disk quota is used up. Make room and try again",
    errno.EFBIG: "the file system takes no file of this size. Use another one",
    errno.EACCES: "permission denied. Check the rights of the folder",
    errno.EPERM: "permission denied. Check the rights of the folder",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.ENOENT: "there is no such folder. Make it first",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.EMFILE: "too many files are open in this process. Raise its limit (ulimit -n)",
}
# File systems that write folders in their own time say one of these.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


@contextmanager
def whole_file(path: Path, *, replaces: bool = True, follows_links: bool = True) -> Iterator[int]:
    """A descriptor to write to; the file is at `path` when the block ends, and not at all if it fails.

    Of a symbolic link what it leads to is replaced, or with `follows_links` false the link itself. Raises
    LongFocusError, with all that was there before intact, when it cannot be written, is a pipe or a device, or exists
    and `replaces` is false.
    """
    with told_with(path):
        refuse_special(path)
        if follows_links:
            path = Path(os.path.realpath(path))
        _remove_leftovers(path.parent)
        temporary, descriptor = _open_temporary(path.parent)
        try:
            yield descriptor
            os.fsync(descriptor)
            if replaces:
                os.replace(temporary, path)
            else:
                move_new(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)


def refuse_special(path: Path) -> None:
    """Raise LongFocusError for a pipe, a socket or a device: a file would take its place."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise LongFocusError(
            f"{path} is a pipe, a socket or a device, and would become a file. Only files can be written: choose a "
            "name for one, and read it when the command has ended."
        )


def move_new(old: Path, new: Path) -> None:
    """Rename a file, raising FileExistsError if the new name is taken."""
    folder = os.open(new.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not _lock(folder, unknown=False, waits=True):
            # where folders have no locks: unlike a rename, a link never replaces, but a kill may leave both names
            os.link(old, new)
            os.unlink(old)
        elif os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        else:
            os.rename(old, new)
    finally:
        os.close(folder)


@contextmanager
def told_with(path: Path, doing: str = "written") -> Iterator[None]:
    """Turns errors of the system into a LongFocusError that names the file and says what to do."""
    _check_name(path)
    try:
        yield
    except FileExistsError as error:
        raise LongFocusError(
            f"{path} exists already. Remove it first, or choose another name."
        ) from error
    except OSError as error:
        told = _ADVICE.get(error.errno or 0, f"{error.strerror or error}. Check the path")
        raise LongFocusError(f"{path} cannot be {doing}: {told}.") from error


def _check_name(path: Path) -> None:
    try:
        is_name = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise LongFocusError(
            f"{str(path)!r} cannot be the name of a file: it holds NUL or half of a surrogate pair. Choose another one."
        )


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """os.write, which may take less than it is given, until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_text(path: Path, text: str) -> None:
    """All of a text, in UTF-8, or nothing; errors as `whole_file`."""
    with whole_file(path) as descriptor:
        write_all(descriptor, text.encode())


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _open_temporary(folder: Path) -> tuple[Path, int]:
    """A new locked file; the lock tells that its writer is alive."""
    while True:
        path = folder / f"{_PREFIX}{token_hex(8)}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if _lock(descriptor, unknown=True) and os.fstat(descriptor).st_nlink:
            return path, descriptor
        # another writer took it for a leftover between the two calls
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left behind; files of living ones are locked."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _lock(descriptor, unknown=False):
                    path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, *, unknown: bool, waits: bool = False) -> bool:
    """Whether the lock was taken; `unknown` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True
