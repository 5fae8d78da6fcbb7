"""Losses that are half a square, as engine.c reads them."""

from __future__ import annotations

import ctypes
from typing import Any

from ...losses import squares_of
from . import compiled

# Numbers of a product with the samples up to which the gradient of a square is made in plain loops.
_LARGEST = 2**14


class Given(ctypes.Structure):
    """As `Squares` in work.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "R")),
        *((name, ctypes.c_int) for name in ("rows", "outputs")),
        ("apart", ctypes.c_long),
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
    x, y, readout = square.x, square.y.contiguous(), square.readout
    if x is None:
        shape = (*batch, d, d)
        # With a state of several members for one row, their targets have no axis for it.
        fits = y.shape in ((d, d), shape) or (batch[:1] == (1,) and y.shape == shape[1:])
        return (Given(y=y.data_ptr(), apart=0 if y.ndim == 2 else d * d), y) if fits else None
    if len(y) * d * d > _LARGEST or x.shape[1] != d:
        return None
    x, readout = x.contiguous(), None if readout is None else readout.contiguous()
    R = None if readout is None else readout.data_ptr()
    return Given(x=x.data_ptr(), y=y.data_ptr(), R=R, rows=len(y), outputs=y.shape[1]), (x, y, readout)
