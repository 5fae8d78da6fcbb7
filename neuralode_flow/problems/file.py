"""The user's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..checks import count, real
from ..display import first_of
from ..losses import LOSSES, LossName
from ..signatures import CountsWith, Dimension, Seed, at_least, at_most, check_range, known
from ..untrusted import printable
from .arrays import is_text, read_columns, read_table
from .base import PROBLEMS, InputFile, Problem, identity
from .rows import MISSING, Rows

Missing = Annotated[str, known(MISSING, "way with missing values")]
HeldOut = Annotated[float, at_least(0), at_most(0.9)]


@PROBLEMS.register("file")
def file(
    x: InputFile | Sequence[str],
    y: InputFile | Sequence[str],
    standardise: bool = True,
    dimension: Dimension | None = None,
    loss: LossName = "quadratic",
    header: str | bool = "auto",
    table: InputFile | None = None,
    x_key: str | None = None,
    y_key: str | None = None,
    missing: Missing = "refuse",
    held_out: HeldOut = 0.0,
    seed: Annotated[Seed, CountsWith(("held_out",))] = 0,
    whiten: bool = False,
) -> Problem:
    """Linear regression of the rows of `y` on the rows of `x`, read from two files, or from the columns of one table.

    The map z is d × d with d = max(d_in, d_out), or `dimension` if given. Where d_in or d_out is smaller than d, fixed
    identities padded with zeros lead in and out: f(z) = 1/(2n) Σ‖readout z readin xᵢ − yᵢ‖².

    Parameters
    ----------
    x, y : str or list of str
        Files .csv, .tsv, .txt, .npy, .npz, .parquet or .nc with one row for each sample, (n, d_in) and (n, d_out); or,
        with `table`, names of its columns. A single axis is one column. Names of columns and rows in a file are left
        out.
    standardise : bool
        Give every column mean 0 and variance 1; constant columns become 0. Classes stay as they are.
    dimension : int, optional
        Size d of the maps, at least max(d_in, d_out).
    loss : str
        A name in LOSSES: how residuals count; "quadratic" as above, "logistic" and "cross_entropy" for classes.
    header : str or bool
        Whether the first line of a text holds names: "yes" (true), "no" (false), or "auto" where it can be seen: words,
        quotes, an empty first cell. A file that could be read in two ways is refused.
    table : str, optional
        One file that has the columns of x and y by name.
    x_key, y_key : str, optional
        The array of a .npz or the variable of a .nc that is meant; by default the only one, or the one named x, or y.
    missing : {"refuse", "drop"}
        What becomes of rows where a value is missing (empty, NA, NaN).
    held_out : float
        The part of the rows that training does not see, from 0 to 0.9; their loss is told beside that of training.
    seed : int
        Seed of the rows that are held out.
    whiten : bool
        Give the standardised x covariance I as well, where its columns are so alike that training takes long.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If a file is missing or is not one finite real table, if x and y have different numbers of rows, if no column
        varies, if columns to whiten determine one another, or if a parameter is of the wrong kind or out of range.
    """
    for name, value in (("standardise", standardise), ("whiten", whiten)):
        if not isinstance(value, bool):
            raise TypeError(f"problem.{name} must be true or false, got {value!r}")
    if whiten and not standardise:
        raise ValueError("problem.whiten=true is for standardised columns; set problem.standardise=true as well")
    check_range("problem.missing", missing, Missing)
    part = real("problem.held_out", held_out)
    check_range("problem.held_out", held_out, HeldOut)
    inputs, outputs = _tables(x, y, table, (x_key, y_key), header, MISSING[missing])
    if len(inputs) != len(outputs):
        raise ValueError(
            f"problem.x has {len(inputs)} rows but problem.y has {len(outputs)}; give one row for each sample in both"
        )
    rows = Rows(inputs, outputs)
    rows.drop_missing()
    encode = getattr(LOSSES[loss], "encode", None)
    if encode is not None:
        rows.y = encode("problem.y", rows.y)
    if part:
        rows.hold_out(part, seed)
    if standardise:
        rows.standardise(outputs=encode is None)
    if whiten:
        rows.whiten()
    return _problem(rows, loss, dimension, _titled(x, y, table))


def _tables(
    x: Any, y: Any, table: str | None, keys: tuple[str | None, str | None], header: str | bool, missing: bool
) -> list[Tensor]:
    """x and y as they are read, with NaN for what is missing."""
    if isinstance(header, bool):  # YAML takes yes and no for them
        header = "yes" if header else "no"
    files = [x, y] if table is None else [table]
    if header in ("yes", "no") and not any(isinstance(file, (str, Path)) and is_text(file) for file in files):
        raise ValueError(f"problem.header={header} has no effect: no file is a text with a first line; leave it out")
    if table is None:
        for name, value in (("problem.x", x), ("problem.y", y)):
            if isinstance(value, (list, tuple)):
                raise ValueError(
                    f"{name} has names of columns, {list(value)}; set problem.table=FILE to the table they are in"
                )
        return [
            read_table(f"problem.{name}", location, name, header, chosen=key, missing=missing)
            for name, location, key in (("x", x, keys[0]), ("y", y, keys[1]))
        ]
    for name, key in (("x", keys[0]), ("y", keys[1])):
        if key is not None:
            raise ValueError(f"problem.{name}_key={key} has no effect with problem.table, where columns have names")
    columns = {"problem.x": _names("problem.x", x), "problem.y": _names("problem.y", y)}
    return read_columns("problem.table", table, columns, header, missing=missing)


def _names(name: str, value: Any) -> list[str]:
    """Names of columns: one alone, or a list of them."""
    names = [value] if isinstance(value, str) else value
    listed = isinstance(names, (list, tuple)) and len(names) > 0
    if not listed or not all(isinstance(one, str) and one for one in names):
        raise TypeError(f"{name} must name columns of problem.table, such as [a,b], got {value!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{name} must not name a column twice, got {names}")
    return list(names)


def _problem(rows: Rows, loss: str, dimension: Dimension | None, names: str) -> Problem:
    """The loss of the rows, led in and out of a square z."""
    (n, d_in), d_out = rows.x.shape, rows.y.shape[1]
    d = _dimension(dimension, d_in, d_out)
    readin, readout = _padded(d, d_in), _padded(d_out, d)
    f = LOSSES[loss](*rows.trained(), readin=readin, readout=readout)
    if not torch.isfinite(f(identity(d))):
        raise ValueError("the loss of problem.x and problem.y overflows at z = I; scale them or set standardise=true")
    held = None
    if rows.held is not None:
        held = LOSSES[loss](rows.x[rows.held], rows.y[rows.held], readin=readin, readout=readout)
    if readin is not None or readout is not None:
        rows.said.append(f"{d_in} inputs and {d_out} outputs padded with zeros to the square z, {d} × {d}")
    title = f"{names}: {d_in} inputs → {d_out} outputs, {n} samples, z is {d} × {d}"
    return Problem("file", title, f, identity(d), held, tuple(rows.said))


def _titled(x: Any, y: Any, table: str | None) -> str:
    if table is None:
        return " → ".join(printable(Path(path).name) for path in (x, y))
    ends = (first_of(_names(name, value), 4) for name, value in (("x", x), ("y", y)))
    return f"{printable(Path(table).name)}, {printable(' → '.join(ends))}"


def _dimension(dimension: Dimension | None, d_in: int, d_out: int) -> int:
    least = max(d_in, d_out)
    if dimension is None:
        return least
    if count("problem.dimension", dimension) < least:
        raise ValueError(
            f"problem.dimension must be at least {least} for {d_in} inputs and {d_out} outputs, got {dimension}"
        )
    return dimension


def _padded(rows: int, columns: int) -> Tensor | None:
    """The identity padded with zeros to `(rows, columns)`; nothing where it would be the identity itself."""
    return None if rows == columns else torch.eye(rows, columns, dtype=torch.float64)
