"""Run folders that belong to one run alone, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4


def claim(parent: Path) -> Path:
    """A new folder in `parent` that no other run has.

    It is called after the time of the call, with -2, -3, … appended where that is taken. Making a folder is exclusive,
    so that of several programs that try one name only one gets it.

    Raises
    ------
    OSError
        If `parent` cannot be made or written to.
    """
    parent.mkdir(parents=True, exist_ok=True)
    stem = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder, number = parent / stem, 1
    while not _made(folder):
        number += 1
        folder = parent / f"{stem}-{number}"
    return folder


def _made(folder: Path) -> bool:
    """Whether this call made the folder."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def discard_if_empty(folder: Path) -> None:
    """Removes a folder in which nothing was written; one that holds something stays."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, else it is removed.

    The temporary file lies in the same folder (a rename across file systems is a copy), and both the file and the
    folder are flushed to disk, so that a crash leaves the old file or the new one.
    """
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
