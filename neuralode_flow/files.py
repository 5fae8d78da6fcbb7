"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO
from uuid import uuid4

CONFIG = "config.yaml"  # the resolved config in a run folder
RESULTS = "results.nc"  # its dataset

try:
    import fcntl
except ImportError:  # Windows: no locks, so that a second run on a folder is not noticed there
    fcntl = None  # type: ignore[assignment]


# A pipe does not make the program wait. Windows has none of these but the last.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, else it is removed.

    The temporary file lies in the same folder (a rename across file systems is a copy), and both the file and the
    folder are flushed to disk, so that a crash leaves the old file or the new one.
    """
    temporary = path.with_name(f"{_prefix(path)}{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def remove_remains(path: Path) -> None:
    """Removes the temporary files that a process left which was killed while it wrote `path`."""
    for temporary in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        temporary.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.stem}.writing-"


@contextmanager
def opened(label: str, path: Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """A regular file, open for reading; whatever else has the name is refused, and a pipe is never waited for.

    Parameters
    ----------
    label : str
        Begins every message.
    path : Path
        Folders on the way to the file may be links.
    follow : bool
        Whether the file itself may be one.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is no regular file, or cannot be opened.
    """
    check_regular(label, path, follow=follow)  # to open a device can already move it
    with _said(label):
        handle = os.open(path, _FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    with os.fdopen(handle, "rb") as stream:
        _refuse_irregular(label, os.fstat(handle).st_mode)  # another may have taken its place since
        yield stream


def check_regular(label: str, path: Path, *, follow: bool = True) -> None:
    """Raises what `opened` does unless there is a regular file."""
    with _said(label):
        mode = path.stat(follow_symlinks=follow).st_mode
    _refuse_irregular(label, mode)


@contextmanager
def _said(label: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label} does not exist; check the path") from error
    except OSError as error:
        raise ValueError(f"{label} cannot be read: {error.strerror}") from error


def _refuse_irregular(label: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise ValueError(f"{label} is a link, which is not followed; put the file itself there")
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    raise ValueError(f"{label} is {kinds.get(stat.S_IFMT(mode), 'a device')}; give a regular file")


def check_version(path: Path, version: int, known: int) -> None:
    """Raises ValueError unless a file is of the `known` version."""
    if version != known:
        raise ValueError(
            f"{path} has format version {version} and this program reads version {known}: read it with the version of "
            f"neuralode_flow that wrote it"
        )


def check_seal(path: Path, digest: str, stream: BinaryIO, start: int, stop: int, advice: str) -> None:
    """Raises ValueError unless `digest` is the SHA-256 of the bytes of `stream` from `start` to `stop`."""
    if seal(stream, start, stop) != digest:
        raise ValueError(f"{path} is damaged: its contents do not match its checksum; {advice}")


def seal(stream: IO[bytes] | io.RawIOBase, start: int, stop: int) -> str:
    """The SHA-256 of the bytes of a stream from `start` to `stop`."""
    found = hashlib.sha256()
    stream.seek(start)
    while start < stop and (block := stream.read(min(stop - start, 1 << 20))):
        found.update(block)
        start += len(block)
    return found.hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a regular file; raises what `opened` does."""
    with opened(str(path), path) as stream:
        return seal(stream, 0, os.fstat(stream.fileno()).st_size)


def last_bytes(stream: BinaryIO, count: int) -> tuple[bytes, int]:
    """The last `count` bytes of a file, fewer where it is shorter, and its size."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - count, 0))
    return stream.read(count), size


def as_path(name: str, value: Any) -> Path:
    """`value` as a path that the file system can hold.

    Raises
    ------
    TypeError, ValueError
        If it is not text or a path, is empty, or cannot be a file's name.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be the path of a file, got {value!r}")
    if not str(value):
        raise ValueError(f"{name} must be the path of a file, got ''")
    try:
        path = Path(value)
        path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be {str(value)[:60]!r}: {reason}") from error
    return path


def expanded(location: str | os.PathLike[str]) -> Path:
    """A path whose `~` is the home directory; as in a shell, that of a user who is not known stays what it is."""
    return Path(os.path.expanduser(location))


class InUse(OSError):
    """Another process holds the lock."""


# Not the package filelock (4.2): it takes the lock away from forked children, so that a run that is killed leaves its
# folder free while its workers still run; it makes a folder anew that was removed; and asked without patience it takes
# a lock for held whose holder has just removed it.
@contextmanager
def locked(path: Path, patience: float = 2.0) -> Iterator[None]:
    """Holds the lock file `path` for the block; it ends with the process and those forked from it, however they end.

    Parameters
    ----------
    path : Path
        An empty file of this name stays.
    patience : float
        Seconds to wait: the processes of a run that was killed take a moment to end.

    Raises
    ------
    InUse
        If another process holds it.
    OSError
        If the file cannot be made.
    """
    last = time.monotonic() + patience
    handle = _opened_and_locked(path)
    while handle is None:
        if time.monotonic() > last:
            raise InUse(f"{path} is held by another process")
        time.sleep(0.05)
        handle = _opened_and_locked(path)
    try:
        yield
    finally:
        os.close(handle)


def _opened_and_locked(path: Path) -> int | None:
    """A handle of the file that is locked now, or None if another process holds it.

    A file that its last holder has removed in the meantime is no lock any more: who comes next makes another one.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
