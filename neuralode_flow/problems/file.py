"""The user's own arrays."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..checks import count
from ..losses import LOSSES, LossName
from ..signatures import Dimension
from ..untrusted import printable
from .arrays import read_table
from .base import PROBLEMS, InputFile, Problem, identity, standardised


@PROBLEMS.register("file")
def file(
    x: InputFile,
    y: InputFile,
    standardise: bool = True,
    dimension: Dimension | None = None,
    loss: LossName = "quadratic",
    header: str | bool = "auto",
) -> Problem:
    """Linear regression of the rows of `y` on the rows of `x`, read from two files (or two arrays of one .npz).

    The map z is d × d with d = max(d_in, d_out), or `dimension` if given. Where d_in or d_out is smaller than d, fixed
    identities padded with zeros lead in and out: f(z) = 1/(2n) Σ‖readout z readin xᵢ − yᵢ‖².

    Parameters
    ----------
    x, y : str
        Files .npy, .npz (one array, or the ones named x and y) or .csv (comma, semicolon or tab; names of columns and
        rows are left out), with one row for each sample: (n, d_in) and (n, d_out). A single axis is one column.
    standardise : bool
        Give every column mean 0 and variance 1; constant columns become 0.
    dimension : int, optional
        Size d of the maps, at least max(d_in, d_out).
    loss : str
        A name in LOSSES: how residuals count; "quadratic" as above.
    header : str or bool
        Whether the first line of the .csv files holds names: "yes" (true), "no" (false), or "auto" where it can be
        seen: words, quotes, an empty first cell. A file that could be read in two ways is refused.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If a file is missing or is not one finite real table, if x and y have different numbers of rows, if no column
        varies, or if a parameter is of the wrong kind or out of range.
    """
    if not isinstance(standardise, bool):
        raise TypeError(f"problem.standardise must be true or false, got {standardise!r}")
    if isinstance(header, bool):  # YAML takes yes and no for them
        header = "yes" if header else "no"
    inputs, outputs = read_table("problem.x", x, "x", header), read_table("problem.y", y, "y", header)
    if len(inputs) != len(outputs):
        raise ValueError(
            f"problem.x has {len(inputs)} rows but problem.y has {len(outputs)}; give one row for each sample in both"
        )
    if standardise:
        inputs, outputs = _standardised("problem.x", inputs), _standardised("problem.y", outputs)
    (n, d_in), d_out = inputs.shape, outputs.shape[1]
    d = _dimension(dimension, d_in, d_out)
    f = LOSSES[loss](inputs, outputs, readin=_padded(d, d_in), readout=_padded(d_out, d))
    if not torch.isfinite(f(identity(d))):
        raise ValueError("the loss of problem.x and problem.y overflows at z = I; scale them or set standardise=true")
    names = " → ".join(printable(Path(path).name) for path in (x, y))
    title = f"{names}: {d_in} inputs → {d_out} outputs, {n} samples, z is {d} × {d}"
    return Problem("file", title, f, identity(d))


def _standardised(name: str, table: Tensor) -> Tensor:
    result = standardised(table)
    if not result.any():
        raise ValueError(
            f"{name} has no column that varies over its {len(table)} rows, so nothing is left once standardised; "
            "set problem.standardise=false"
        )
    return result


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
