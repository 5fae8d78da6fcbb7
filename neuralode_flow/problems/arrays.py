"""Read a user's table from a file; every complaint names the setting, the file and the place in it.

Loading runs no code: pickled objects are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import check_regular, expanded, opened
from .binary import read_numpy
from .netcdf import read_netcdf
from .parquet import read_parquet
from .text import HEADERS, read_text
from .wanted import DROP, MOST_BYTES, Wanted


def _text(label: str, stream: BinaryIO, size: int, wanted: Wanted) -> np.ndarray:
    return read_text(label, stream, wanted.header, wanted)


def _blanks(label: str, stream: BinaryIO, size: int, wanted: Wanted) -> np.ndarray:
    return read_text(label, stream, wanted.header, wanted, blanks=True)


# Readers by suffix: (label, stream, size of the file, what is wanted) → (n, k), or of other axes where it is no table.
READERS: dict[str, Callable[[str, BinaryIO, int, Wanted], np.ndarray]] = {
    ".npy": read_numpy,
    ".npz": read_numpy,
    ".csv": _text,
    ".tsv": _text,
    ".txt": _blanks,
    ".parquet": read_parquet,
    ".nc": read_netcdf,
}
_BY_NAME = (".npz", ".nc")  # hold several arrays


def is_text(location: str | os.PathLike[str]) -> bool:
    """Whether a file is a text, which may begin with a line of names."""
    return READERS.get(Path(location).suffix.lower()) in (_text, _blanks)


def read_table(
    name: str,
    location: str | os.PathLike[str],
    key: str,
    header: str = "auto",
    *,
    chosen: str | None = None,
    missing: bool = False,
) -> Tensor:
    """The table in a file as a float64 tensor `(n, k)`, n rows (samples) and k columns (features).

    Parameters
    ----------
    name : str
        The setting that gave the file, such as `problem.x`; it opens every error message.
    location : str or path
        A file of a suffix in `READERS`; `~` is the home directory.
    key : str
        The name of the array or variable in a .npz or .nc file that holds several.
    header : str
        Whether the first line of a text holds names: "yes", "no", or "auto" (see `text.read_text`).
    chosen : str, optional
        The same as `key`, where the user has set it: it must be there then.
    missing : bool
        Whether empty cells, NA and NaN become NaN; by default they are refused.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If the location is not a path, or the entries are not real numbers.
    ValueError
        If the file cannot be read as one non-empty table of at most 1 GiB, finite but for what is missing, or could be
        read as two.
    """
    wanted = Wanted(chosen or key, chosen is not None, f"{name}_key", header, missing)
    return _read(name, location, wanted)


def read_columns(
    name: str,
    location: str | os.PathLike[str],
    columns: Mapping[str, Sequence[str]],
    header: str = "auto",
    *,
    missing: bool = False,
) -> list[Tensor]:
    """Columns of one table by their names: a float64 tensor `(n, k)` for each entry of `columns`.

    Parameters
    ----------
    name, location, header, missing
        As in `read_table`. A .npz has a column in each array of one axis, a .npy in each named field, a .nc in each
        variable of one axis and in each row or column of a variable that has a label.
    columns : dict of str to list of str
        Names of columns by the setting that asks for them, such as ``{"problem.x": ["a", "b"], "problem.y": ["c"]}``.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As `read_table`, of the columns that are asked for alone; and for a name that no column has, or several have.
    """
    table = _read(name, location, Wanted(header=header, missing=missing, columns=columns))
    return list(torch.split(table, [len(names) for names in columns.values()], dim=1))


def _read(name: str, location: str | os.PathLike[str], wanted: Wanted) -> Tensor:
    if wanted.header not in HEADERS:
        raise ValueError(f"problem.header must be one of {', '.join(HEADERS)}, got {wanted.header!r}")
    path = _existing_file(name, location)
    label = f"{name}={path}"
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{label} has the unknown suffix {path.suffix!r} (valid: {', '.join(READERS)}); save the table "
            f"as one of them"
        )
    if wanted.chosen and path.suffix.lower() not in _BY_NAME:
        raise ValueError(f"{wanted.setting}={wanted.key} has no effect: {label} holds one table; leave it out")
    with opened(label, path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MOST_BYTES:
            raise ValueError(f"{label} has {size} bytes, and tables of at most {MOST_BYTES} are read; give fewer rows")
        array = reader(label, stream, size, wanted)
    names = [column for columns in (wanted.columns or {}).values() for column in columns]
    return torch.as_tensor(_table(label, array, names, wanted.missing))


def _existing_file(name: str, location: str | os.PathLike[str]) -> Path:
    if not isinstance(location, (str, os.PathLike)) or not str(location):
        raise TypeError(f"{name} must be the path of a file ({', '.join(READERS)}), got {location!r}; set {name}=PATH")
    try:
        path = expanded(location)
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


def _table(label: str, array: np.ndarray, names: Sequence[str], missing: bool) -> np.ndarray:
    """`array` as a float64 table; one axis becomes one column, integers and booleans become floats."""
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
    bad = np.argwhere(np.isinf(table) if missing else ~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        called = f" ({names[column]!r})" if names else ""
        cure = "" if np.isinf(table).any() else f", {DROP}"
        raise ValueError(
            f"{label} has {len(bad)} NaN or infinite entries, the first ({table[row, column]}) in row {row + 1}, "
            f"column {column + 1}{called} (counted from 1); fill or remove them{cure}"
        )
    return table
