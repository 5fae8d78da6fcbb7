"""Losses that are half a square, as engine.c reads them."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from ...losses import squares_of
from . import compiled

# Numbers of a product with the samples up to which the gradient of a square is made in plain loops.
_LARGEST = 2**14


class Given(ctypes.Structure):
    """As `Squares` in work.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "R", "weight")),
        *((name, ctypes.c_int) for name in ("rows", "outputs")),
        *((name, ctypes.c_long) for name in ("apart", "farther")),
    )

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What rooms are made for."""
        return self.x is None, self.R is None, self.rows, self.outputs


def given(loss: Any, batch: tuple[int, ...], d: int) -> tuple[Given, Any] | None:
    """A loss of z `(*batch, d, d)`, with what must live as long; None where it is no square, or none of numbers."""
    square = squares_of(loss)
    if square is None or not all(part is None or compiled.is_numbers(part) for part in square):
        return None
    x, readout, weight = (
        None if part is None else part.contiguous() for part in (square.x, square.readout, square.weight)
    )
    y = square.y.contiguous()
    parts = x, y, readout, weight
    known = Given(*(None if part is None else part.data_ptr() for part in parts))
    # What has no number, or none in memory, is at 0, which C takes for a part that is not there.
    if any(part is not None and not part.data_ptr() for part in parts):
        return None
    if weight is not None:
        if not _fits(weight, (), batch):
            return None
        known.farther = min(weight.ndim, 1)
    if x is None:
        known.apart = 0 if y.ndim == 2 else d * d
        fits = readout is None and _fits(y, (d, d), batch)
    else:
        fits = y.ndim == 2 and x.shape == (len(y), d) and len(y) * d * d <= _LARGEST
        known.rows, known.outputs = y.shape[:2] if fits else (0, 0)
        fits = fits and (known.outputs == d if readout is None else readout.shape == (known.outputs, d))
    return (known, parts) if fits else None


def _fits(part: Tensor, one: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether it has a part of the shape `one` for each member, or one for all."""
    # With a state of several members for one row, what they have has no axis for it.
    return part.shape in (one, (*batch, *one)) or (batch[:1] == (1,) and part.shape == (*batch[1:], *one))
