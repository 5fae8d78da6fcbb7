"""Read a user's table from .npy, .npz or .csv; every complaint names the setting, the file and the place in it.

Loading runs no code: pickled objects are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import check_regular, opened
from ..npy import members, read_array
from .text import HEADERS, read_text

# Bytes of a file, and of its numbers: 2²⁷ of them. A regression keeps several copies and products of its tables.
MOST_BYTES = 2**30
# A compressed array above the first size grows no more than so many times: tables of measurements grow five times.
_FREE_GROWTH, _MOST_GROWTH = 2**26, 100


def read_table(name: str, location: str | os.PathLike[str], key: str, header: str = "auto") -> Tensor:
    """The table in a file as a float64 tensor `(n, k)`, n rows (samples) and k columns (features).

    Parameters
    ----------
    name : str
        The setting that gave the file, such as `problem.x`; it opens every error message.
    location : str or path
        A .npy, .npz or .csv file; `~` is the home directory.
    key : str
        The name of the array in a .npz file that holds several.
    header : str
        Whether the first line of a .csv file holds names: "yes", "no", or "auto" (see `text.read_text`).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If the location is not a path, or the entries are not real numbers.
    ValueError
        If the file cannot be read as one non-empty finite table of at most 1 GiB, or could be read as two.
    """
    if header not in HEADERS:
        raise ValueError(f"problem.header must be one of {', '.join(HEADERS)}, got {header!r}")
    path = _existing_file(name, location)
    label = f"{name}={path}"
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".csv"):
        raise ValueError(f"{label} has the unknown suffix {path.suffix!r} (valid: .npy, .npz, .csv)")
    with opened(label, path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MOST_BYTES:
            raise ValueError(f"{label} has {size} bytes, and tables of at most {MOST_BYTES} are read; give fewer rows")
        array = read_text(label, stream, header) if suffix == ".csv" else _read_numpy(label, stream, size, key)
    return torch.as_tensor(_table(label, array))


def _existing_file(name: str, location: str | os.PathLike[str]) -> Path:
    if not isinstance(location, (str, os.PathLike)) or not str(location):
        raise TypeError(f"{name} must be the path of a .npy, .npz or .csv file, got {location!r}; set {name}=PATH")
    try:
        path = Path(location).expanduser()
        path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name}={path} does not exist (looked in {path.absolute().parent}); check the path"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # too long, a loop, a null character, an unknown user
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} is no path that can be read ({reason}), got {str(location)[:60]!r}") from error
    check_regular(f"{name}={path}", path)
    return path


def _table(label: str, array: np.ndarray) -> np.ndarray:
    """`array` as a finite float64 table; one axis becomes one column, integers and booleans become floats."""
    if array.dtype.kind not in "fiub":
        advice = "give its real and imaginary parts as columns" if array.dtype.kind == "c" else "convert it to floats"
        raise TypeError(f"{label} must hold real numbers, got dtype {array.dtype}; {advice}")
    if array.ndim not in (1, 2):
        raise ValueError(f"{label} must have 1 or 2 axes (rows, columns), got shape {array.shape}; reshape it")
    table = array.reshape(len(array), -1) if array.size else array
    if table.size == 0:
        raise ValueError(f"{label} is empty, got shape {array.shape}; give at least one row and one column")
    with np.errstate(over="ignore"):  # a wider float that overflows is reported below
        table = np.ascontiguousarray(table, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{label} has {len(bad)} NaN or infinite entries, the first ({table[row, column]}) in row {row + 1}, "
            f"column {column + 1} (counted from 1); fill or remove them"
        )
    return table


def _read_numpy(label: str, stream: BinaryIO, size: int, key: str) -> np.ndarray:
    try:
        if not stream.read(4).startswith(b"PK"):
            stream.seek(0)
            return read_array(stream, size, MOST_BYTES)
        archive, found = members(stream)
        info = found[_array_name(label, list(found), key)]
        most = min(MOST_BYTES, max(_FREE_GROWTH, _MOST_GROWTH * info.compress_size))
        with archive.open(info) as member:
            return read_array(member, info.file_size, most)
    except _WrongKey:
        raise
    except Exception as error:  # whatever a damaged file makes NumPy, zipfile or zlib raise
        # NumPy's own words advise to load pickled objects, which could run any code.
        reason = "it has no NumPy header, or holds Python objects" if "pickle" in str(error) else error
        raise ValueError(
            f"{label} cannot be read as a NumPy file ({reason}); save plain numbers again with numpy.save or savez"
        ) from error


class _WrongKey(ValueError):
    """The archive is sound, but which of its arrays is meant is open."""


def _array_name(label: str, names: list[str], key: str) -> str:
    if len(names) == 1:
        return names[0]
    if key not in names:
        listed = ", ".join(names[:20]) or "none"
        raise _WrongKey(f"{label} holds {len(names)} arrays and none is called '{key}' (found: {listed}); rename one")
    return key
