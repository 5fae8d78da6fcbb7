"""One file of named arrays and a header of plain values, with a version and a checksum; reading it runs no code.

It is a NumPy .npz archive: `numpy.load` opens it. The entry "header" is JSON, and the comment at the end of the zip
names the format, its version, and the SHA-256 of all bytes before that sum. Version 1 had them in lines before the zip.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .files import atomic_write, check_seal, check_version, last_bytes, opened
from .npy import members, read_array

VERSION = 2
_SUM = 64  # digits of a checksum
_COMMENT = f"neuralode_flow archive {VERSION} ".encode()
_SEAL = re.compile(rb"neuralode_flow archive (\d{1,9}) ([0-9a-f]{64})\Z")
_LINES = re.compile(rb"neuralode_flow archive (\d{1,9})\n([0-9a-f]{64})\n")
# JSON takes up to twenty times the memory of its text.
_LONGEST_HEADER = 2**22


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
    ValueError
        If the header is longer than `read` takes.
    """
    encoded = np.frombuffer(json.dumps(header, allow_nan=True).encode(), dtype=np.uint8)
    if len(encoded) > _LONGEST_HEADER:
        raise ValueError(f"the settings of {path} take {len(encoded)} bytes, more than {_LONGEST_HEADER}; shorten them")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, header=encoded, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = _COMMENT + _SUM * b"0"
    content = bytearray(buffer.getbuffer())
    content[-_SUM:] = hashlib.sha256(memoryview(content)[:-_SUM]).hexdigest().encode()
    if keep and path.exists():
        # A second name for the old file, so that there is a whole one under `path` at every instant.
        link = path.with_name(f".{path.name}.link")
        with suppress(OSError):  # a file system without hard links keeps one archive
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, previous(path))
    atomic_write(path, content)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of an archive.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not an archive, of another version, or damaged; the message says which.
    """
    with opened(str(path), path) as stream:
        comment = _check(path, stream)
        try:
            return _contents(stream, comment)
        except Exception as error:  # whatever a forged archive makes NumPy, zipfile or json raise
            raise ValueError(f"{path} is not a file that neuralode_flow wrote: its contents cannot be read") from error


def _check(path: Path, stream: BinaryIO) -> int:
    """The length of the archive's comment; ValueError unless the file is sealed and as it was written."""
    spare = previous(path)
    advice = f"the one before it is {spare}" if spare.exists() else "it cannot be mended"
    tail, size = last_bytes(stream, 2 * _SUM)
    stream.seek(0)
    seal, lines = _SEAL.search(tail), _LINES.match(stream.read(2 * _SUM))
    if seal:
        check_version(path, int(seal[1]), VERSION)
        check_seal(path, seal[2].decode(), stream, 0, size - _SUM, advice)
        return len(seal[0])
    if lines:
        check_version(path, int(lines[1]), 1)
        check_seal(path, lines[2].decode(), stream, lines.end(), size, advice)
        return 0
    raise ValueError(f"{path} is damaged or not a file of neuralode_flow: it has no seal at its end; {advice}")


def _contents(stream: BinaryIO, comment: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is in a sealed archive; a seal can be forged, so sizes are looked at first."""
    archive, found = members(stream, comment)
    size = stream.seek(0, os.SEEK_END)
    if any(info.compress_type != zipfile.ZIP_STORED for info in found.values()):
        raise ValueError("it is compressed")
    if sum(info.file_size for info in found.values()) > size:
        raise ValueError("its members claim more bytes than it has")
    if found["header"].file_size > _LONGEST_HEADER + 256:
        raise ValueError("its header is too long")
    arrays = {}
    for name, info in found.items():
        with archive.open(info) as member:
            arrays[name] = read_array(member, info.file_size)
    header = json.loads(arrays.pop("header").tobytes())
    if not isinstance(header, dict):
        raise TypeError("its header is not a record")
    return header, arrays
