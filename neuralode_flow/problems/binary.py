"""Tables in files of NumPy."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

import numpy as np

from ..npy import members, read_array
from .wanted import FREE_GROWTH, MOST_BYTES, MOST_GROWTH, Refused, Wanted, beside, chosen_name


def read_numpy(label: str, stream: BinaryIO, size: int, wanted: Wanted) -> np.ndarray:
    """An array of a .npy or .npz file, or columns `(n, k)` by name: what is in it decides, not what it is called."""
    try:
        if stream.read(4).startswith(b"PK"):
            return _archive(label, stream, wanted)
        stream.seek(0)
        array = read_array(stream, size, MOST_BYTES)
    except (Refused, TypeError):
        raise
    except Exception as error:  # whatever a damaged file makes NumPy, zipfile or zlib raise
        raise _unreadable(label, error) from error
    if wanted.columns is None:
        return array
    if array.dtype.names is None:
        setting = next(iter(wanted.columns))
        raise ValueError(
            f"{label} has no names of columns, and {setting} asks for some; give it as {setting}=FILE instead, or "
            f"write a .csv with a line of names"
        )
    return beside(label, array.dtype.names, lambda name: array[name], wanted)


def _archive(label: str, stream: BinaryIO, wanted: Wanted) -> np.ndarray:
    archive, found = members(stream)

    def read(name: str) -> np.ndarray:
        array = _member(archive, found[name])
        return array[:, 0] if wanted.columns is not None and array.ndim == 2 and array.shape[1] == 1 else array

    if wanted.columns is None:
        return read(chosen_name(label, list(found), wanted, "array"))
    return beside(label, list(found), read, wanted)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    most = min(MOST_BYTES, max(FREE_GROWTH, MOST_GROWTH * info.compress_size))
    with archive.open(info) as member:
        return read_array(member, info.file_size, most)


def _unreadable(label: str, error: Exception) -> ValueError:
    # NumPy's own words advise to load pickled objects, which could run any code.
    reason = "it has no NumPy header, or holds Python objects" if "pickle" in str(error) else error
    return ValueError(
        f"{label} cannot be read as a NumPy file ({reason}); save plain numbers again with numpy.save or savez"
    )
