"""The kernel of the closed flow of L layers, as engine.c reads it."""

from __future__ import annotations

import ctypes

from torch import Tensor

from . import compiled

# d up to which the engine has singular values of its own; work.h has the same bound.
LARGEST = 32

# Layers up to which round-offs of the sums in C stay below 3e-13.
DEEPEST = 2**12


class Given(ctypes.Structure):
    """As `Layers` in work.h."""

    _fields_ = (
        ("shifts", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("L", "apart")),
        ("scale", ctypes.c_double),
    )


def takes(z: Tensor) -> bool:
    """Whether states `(..., d, d)` are for the engine."""
    return compiled.takes(z) and z.shape[-1] <= LARGEST


def given(shifts: Tensor, scale: float, batch: tuple[int, ...]) -> tuple[Given, Tensor] | None:
    """Layers of states `(*batch, d, d)`, with what must live as long; None where these shifts are not for the engine.

    Those of all states are `(L,)`, or each has its own `(*batch, L)`.
    """
    if not compiled.is_numbers(shifts):
        return None
    *own, L = shifts.shape
    if L > DEEPEST or own and tuple(own) != batch[-len(own) :]:
        return None
    if own:
        shifts = shifts.expand(*batch, L)
    shifts = shifts.contiguous()
    return Given(shifts=shifts.data_ptr(), L=L, apart=L if own else 0, scale=scale), shifts
