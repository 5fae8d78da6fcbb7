"""Read a user's table from .npy, .npz or .csv; every complaint names the setting, the file and the place in it.

Loading runs no code: pickled objects are refused.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_table(name: str, location: str | os.PathLike[str], key: str) -> Tensor:
    """The table in a file as a float64 tensor `(n, k)`, n rows (samples) and k columns (features).

    Parameters
    ----------
    name : str
        The setting that gave the file, such as `problem.x`; it opens every error message.
    location : str or path
        A .npy, .npz or .csv file; `~` is the home directory.
    key : str
        The name of the array in a .npz file that holds several.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If the location is not a path, or the entries are not real numbers.
    ValueError
        If the file cannot be read as one non-empty finite table.
    """
    path = _existing_file(name, location)
    label = f"{name}={path}"
    readers = {".npy": _read_numpy, ".npz": _read_numpy, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{label} has the unknown suffix {path.suffix!r} (valid: {', '.join(readers)})")
    return torch.as_tensor(_table(label, reader(label, path, key)))


def _existing_file(name: str, location: str | os.PathLike[str]) -> Path:
    if not isinstance(location, (str, os.PathLike)) or not str(location):
        raise TypeError(f"{name} must be the path of a .npy, .npz or .csv file, got {location!r}; set {name}=PATH")
    try:
        path = Path(location).expanduser()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, an unknown user
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} is no path that can be read ({reason}), got {str(location)[:60]!r}") from error
    if not exists:
        raise FileNotFoundError(f"{name}={path} does not exist (looked in {path.absolute().parent}); check the path")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        raise ValueError(f"{name}={path} is {kind}; give a .npy, .npz or .csv file")
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


def _read_numpy(label: str, path: Path, key: str) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return loaded[_array_name(label, loaded.files, key)]
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
        listed = ", ".join(names) or "none"
        raise _WrongKey(f"{label} holds {len(names)} arrays and none is called '{key}' (found: {listed}); rename one")
    return key


def _read_csv(label: str, path: Path, key: str) -> np.ndarray:
    lines = _cells(label, path)
    if lines and _is_header(lines[0][1]):
        del lines[0]
    if not lines:
        raise ValueError(f"{label} is empty: no line of numbers; give at least one")
    first_line, first = lines[0]
    rows = []
    for line, cells in lines:
        if len(cells) != len(first):
            raise ValueError(
                f"{label} is ragged: line {line} has {len(cells)} cells but line {first_line} has {len(first)}; "
                "make all lines equally long"
            )
        rows.append([_number(label, line, column, cell) for column, cell in enumerate(cells, start=1)])
    return np.array(rows, dtype=np.float64)


def _cells(label: str, path: Path) -> list[tuple[int, list[str]]]:
    """All lines that are not blank, as (line number from 1, cells)."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{label} cannot be read as UTF-8 comma-separated text ({error}); export it again") from error
    return [(line, cells) for line, cells in lines if cells not in ([], [""])]


def _delimiter(text: str) -> str:
    """Tab, semicolon or comma, judged by the last line that is not blank: a header might quote any of them."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return next((mark for mark in "\t;" if mark in last), ",")


def _is_header(cells: list[str]) -> bool:
    """Words and not one number; a line with both is a mistake that should be seen, not skipped."""
    return any(cells) and not any(map(_is_number, cells))


def _number(label: str, line: int, column: int, cell: str) -> float:
    place = f"{label}, line {line}, column {column}"
    if not _is_number(cell):
        what = f"{cell!r} is not a number" if cell else "the cell is empty"
        raise ValueError(f"{place}: {what}; write numbers such as -1.5e3 between commas, semicolons or tabs")
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{place}: {cell!r} is not finite; fill or remove NaN and infinite entries")
    return value


def _is_number(cell: str) -> bool:
    if "_" in cell:  # Python reads 1_000; a table should not
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
