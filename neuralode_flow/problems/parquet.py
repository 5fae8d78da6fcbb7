"""Tables in .parquet files, read by pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .wanted import MOST_BYTES, Wanted

if TYPE_CHECKING:
    import pyarrow


def read_parquet(label: str, stream: BinaryIO, size: int, wanted: Wanted) -> np.ndarray:
    """The columns of a .parquet file, `(n, k)`; an index that pandas has written is no data. Missing values are NaN.

    Raises
    ------
    ValueError
        If pyarrow is not installed, the file is damaged or claims too much.
    TypeError
        If a column that is wanted holds no numbers.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"{label} needs pyarrow, which is not installed here: pip install pyarrow, or save the table as .csv"
        ) from error
    try:
        file = ParquetFile(stream)
        names, rows = list(file.schema_arrow.names), file.metadata.num_rows
        data = [name for name in names if name not in _index(file.schema_arrow)]
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise _unreadable(label, error) from error
    picked = data if wanted.columns is None else [names[i] for i in wanted.picks(label, names)]
    if 8 * rows * len(picked) > MOST_BYTES:
        raise ValueError(f"{label} has {rows} rows of {len(picked)} columns, more than {MOST_BYTES} bytes; give fewer")
    for name in dict.fromkeys(picked):
        _check_numbers(label, file.schema_arrow.field(name), wanted)
    try:
        table = file.read(columns=list(dict.fromkeys(picked)), use_threads=False)
        columns = [_floats(table.column(name)) for name in picked]
    except Exception as error:
        raise _unreadable(label, error) from error
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0))


def _index(schema: pyarrow.Schema) -> list[Any]:
    """Names of the columns that hold the index of a frame."""
    told = schema.pandas_metadata or {}
    return [name for name in told.get("index_columns", []) if isinstance(name, str)]


def _check_numbers(label: str, field: pyarrow.Field, wanted: Wanted) -> None:
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    if any(holds(field.type) for holds in kinds):
        return
    cure = "convert it to floats"
    if wanted.columns is None:
        cure = "choose the others by name, as in problem.table=FILE problem.x=[a,b] problem.y=[c]"
    raise TypeError(f"{label}: column {field.name!r} must hold real numbers, got {field.type}; {cure}")


def _floats(column: pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow

    return np.asarray(column.cast(pyarrow.float64(), safe=False).to_numpy(), dtype=np.float64)


def _unreadable(label: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ValueError(f"{label} cannot be read as Parquet ({reason}); write it again, or save the table as .csv")
