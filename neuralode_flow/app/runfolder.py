"""Run folders that belong to one run alone."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path


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
