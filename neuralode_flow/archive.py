"""One file of named arrays and a header of plain values, with a version and a checksum; reading it runs no code.

The first line names the format and its version, the second holds the SHA-256 of the rest: a NumPy .npz archive without
pickled objects, whose entry "header" is JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_write, check_seal

VERSION = 1
_FORMAT = b"neuralode_flow archive "
_LONGEST_LINE = 100


def previous(path: Path) -> Path:
    """Where the archive that was at `path` before the last one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, keep: bool = False) -> None:
    """Writes an archive, whole or not at all.

    Parameters
    ----------
    path : Path
    header : mapping
        Values that JSON knows.
    arrays : mapping
        Arrays of numbers by name.
    keep : bool
        Keeps what was at `path` as `previous(path)`.

    Raises
    ------
    OSError
        If it cannot be written; what was at `path` is still there.
    """
    buffer = io.BytesIO()
    encoded = np.frombuffer(json.dumps(header, allow_nan=True).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, header=encoded, **arrays)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    if keep and path.exists():
        # A second name for the old file, so that there is a whole one under `path` at every instant.
        link = path.with_name(f".{path.name}.link")
        with suppress(OSError):  # a file system without hard links keeps one archive
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, previous(path))
    atomic_write(path, _FORMAT + f"{VERSION}\n".encode() + digest + b"\n" + payload)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of an archive.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not an archive, of another version, or damaged; the message says which.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    try:
        with path.open("rb") as stream:
            first, second = stream.readline(_LONGEST_LINE), stream.readline(_LONGEST_LINE)
            payload = stream.read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not first.startswith(_FORMAT):
        raise ValueError(f"{path} is not a file of neuralode_flow: its first line is {first[:40]!r}")
    version, digest = first.removeprefix(_FORMAT).strip(), second.removesuffix(b"\n")
    spare = previous(path)
    advice = f"the one before it is {spare}" if spare.exists() else "it cannot be mended"
    check_seal(path, version.decode(errors="replace"), VERSION, digest.decode(errors="replace"), payload, advice)
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
        if not isinstance(header, dict):
            raise TypeError("its header is not a record")
    except Exception as error:  # whatever a forged payload makes NumPy, zipfile or json raise
        raise ValueError(f"{path} is not a file that neuralode_flow wrote: its contents cannot be read") from error
    return header, arrays
