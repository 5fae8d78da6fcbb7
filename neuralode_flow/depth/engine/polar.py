"""The closed flow of infinite depth in logarithms, z = Q e^S, in the compiled engine: velocities, and implicit steps.

`flows.polar.LogPolarFlow` says what these are. Velocities and explicit steps ask any loss for its gradient; implicit
steps are of losses that are half a square. Eigenvectors and linear systems are by the LAPACK that SciPy brings.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...losses import Squares, squares_of
from ..workspace import Workspace
from . import compiled, divided, squares

# d up to which it does this: beyond, LAPACK's own work is all there is.
LARGEST = 32

# Numbers of z of as many states as are kept while a loss that is no square is asked; each takes fifteen times as many.
_MOST_ASKED = 2**20

_WORKSPACE = Workspace()

# What is called of LAPACK, and how, as SciPy says it of what it offers to compiled code.
_ROUTINES = {
    "dsyevd": "char *, char *, int *, d *, int *, d *, d *, int *, int *, int *, int *",
    "dgetrf": "int *, int *, d *, int *, int *, int *",
    "dgetrs": "char *, int *, int *, d *, int *, int *, d *, int *, int *",
}


class Formulas(NamedTuple):
    """Numerical differentiation formulas, and how their steps are taken (time/methods/ndf.py).

    Attributes
    ----------
    gamma, alpha, errors : ndarray (6,)
        Σ 1/j, what an equation is divided by, and what of a difference is the error, by order.
    sweeps : int
        Of Newton's iteration, at most.
    local, newton, worth, longer, shorter, safety, round_off : float
    rtol, atol : float
    """

    gamma: np.ndarray
    alpha: np.ndarray
    errors: np.ndarray
    sweeps: int
    local: float
    newton: float
    worth: float
    longer: float
    shorter: float
    safety: float
    round_off: float
    rtol: float
    atol: float


class _Closed(ctypes.Structure):
    """As in engine.c."""

    _fields_ = (
        ("loss", squares.Given),
        ("layers", divided.Given),
        *((name, ctypes.c_int) for name in ("d", "threads")),
        ("states", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("y", "out", "z", "G", "failed")),
    )


class _Ndf(ctypes.Structure):
    """As in work.h."""

    _fields_ = (
        ("loss", squares.Given),
        *((name, ctypes.c_int) for name in ("d", "order", "equal", "linear", "factored", "degree", "sweeps")),
        *((name, ctypes.c_long) for name in ("n", "evaluations", "products", "most")),
        *((name, ctypes.c_double) for name in ("t", "end", "size", "length", "contraction", "rtol", "atol")),
        *((name, ctypes.c_double) for name in ("local", "newton", "worth", "longer", "shorter", "safety", "round_off")),
        *((name, ctypes.c_void_p) for name in ("gamma", "alpha", "errors", "D", "polynomial")),
        *((name, ctypes.c_void_p) for name in ("weight", "predicted", "history", "change", "kept", "room")),
    )


def takes(state: Tensor) -> bool:
    """Whether states `(..., 2, d, d)` are for the engine."""
    return state.shape[-3:-2] == (2,) and compiled.takes(state) and state.shape[-1] <= LARGEST and _linked()


@cache
def _linked() -> bool:
    """Whether the engine has been given what it calls of LAPACK."""
    from scipy.linalg import cython_lapack  # loaded with scipy.linalg, which all flows need

    offered = getattr(cython_lapack, "__pyx_capi__", {})
    addresses = [_address(offered.get(name), arguments) for name, arguments in _ROUTINES.items()]
    if None in addresses:
        return False
    compiled.loaded().set_lapack(*addresses)
    return True


def _address(capsule: Any, arguments: str) -> int | None:
    """Where a function is; None where it is not there, or takes other arguments, such as integers of 64 bits."""
    if capsule is None:
        return None
    python = ctypes.pythonapi
    python.PyCapsule_GetName.argtypes, python.PyCapsule_GetName.restype = [ctypes.py_object], ctypes.c_char_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    name: bytes = python.PyCapsule_GetName(capsule)
    said = name.decode().replace("__pyx_t_5scipy_6linalg_13cython_lapack_d", "d")
    return python.PyCapsule_GetPointer(capsule, name) if said == f"void ({arguments})" else None


def velocity(loss: Any, states: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """(Q', S') of states `(..., 2, d, d)`, and which of them have none `(...)`, or None where all have one.

    None where the engine does not take them.
    """
    return _velocity(loss, states, tuple(states.shape[:-3]), divided.Given()) if takes(states) else None


def velocity_of_layers(loss: Any, shifts: Tensor, scale: float, z: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The same of the closed flow of layers: ż of z `(..., d, d)`."""
    batch = tuple(z.shape[:-2])
    layers = divided.given(shifts, scale, batch) if divided.takes(z) else None
    return None if layers is None else _velocity(loss, z, batch, layers[0])


def _velocity(
    loss: Any, states: Tensor, batch: tuple[int, ...], layers: divided.Given
) -> tuple[Tensor, Tensor | None] | None:
    d, states = states.shape[-1], states.contiguous()
    out, failed = torch.empty_like(states), np.empty(math.prod(batch), dtype=np.intc)
    task = _Closed(
        layers=layers, d=d, threads=torch.get_num_threads(), states=len(failed), y=states.data_ptr(),
        out=out.data_ptr(), failed=failed.ctypes.data,
    )  # fmt: skip
    known = squares.given(loss, batch, d)
    if known is not None:
        task.loss = known[0]
    elif (z := states.new_empty(*batch, d, d)).numel() > _MOST_ASKED:
        return None
    else:
        task.z = z.data_ptr()
    reference, library = ctypes.byref(task), compiled.loaded()
    with _WORKSPACE.lend() as take:
        room = take("closed", (library.closed_scratch(reference) // 8,), states)
        lost = library.closed(reference, room.data_ptr(), 0)
        if known is None:
            G = loss.gradient(z.clone())  # a tensor of its own, which the loss may keep
            if not compiled.is_numbers(G):
                return None
            G = G.neg().expand(z.shape).contiguous()
            task.G = G.data_ptr()
            lost = library.closed(reference, room.data_ptr(), 1)
    return out, torch.from_numpy(failed).reshape(batch) != 0 if lost else None


class Place(NamedTuple):
    """Where a run by differentiation formulas stands.

    Attributes
    ----------
    t : float
    size : float
        Distance of the backward differences, and the step that is to be tried.
    order : int
    equal : int
        Steps since size and order changed.
    degree, length : int, float
        Order and size of the last step.
    """

    t: float
    size: float
    order: int
    equal: int
    degree: int = 0
    length: float = 0.0


class NdfSteps:
    """Steps of one state `(2, d, d)` by differentiation formulas, each in one call.

    Attributes
    ----------
    differences : ndarray (8, n)
        Backward differences, where the run stands, which steps move.
    polynomial : ndarray (6, n)
        Those at the end of the last step.
    evaluations, products : int
        Velocities and linear systems that the last step took.
    """

    def __init__(self, loss: Any, known: tuple[squares.Given, Any], d: int, formulas: Formulas) -> None:
        self._loss = loss
        self._where: list[Any] | None = None  # the numbers of the loss are, if they are read there
        n, orders = 2 * d * d, len(formulas.gamma)
        self.differences, self.polynomial = np.zeros((orders + 2, n)), np.zeros((orders, n))
        given = formulas._asdict()
        self._arrays = [np.ascontiguousarray(given.pop(name)) for name in ("gamma", "alpha", "errors")]
        self._steps = steps = _Ndf(loss=known[0], d=d, n=n, **given)
        self._sizes = known[0].sizes
        steps.gamma, steps.alpha, steps.errors = (array.ctypes.data for array in self._arrays)
        steps.D, steps.polynomial = self.differences.ctypes.data, self.polynomial.ctypes.data
        library, self._reference = compiled.loaded(), ctypes.byref(steps)
        self._take = library.ndf_step
        sizes = dict.fromkeys(("weight", "predicted", "history", "change"), n)
        sizes |= {"kept": library.ndf_kept(self._reference), "room": library.ndf_room(self._reference)}
        self._rooms = [np.empty(size) for size in sizes.values()]
        for name, room in zip(sizes, self._rooms):
            setattr(steps, name, room.ctypes.data)

    def fastest(self, state: Tensor) -> float:
        """A bound of the rates at which small deviations from a state `(2, d, d)` die out: that of H times σ²."""
        S = state[1]
        ell = float(torch.linalg.eigvalsh((S + S.mT) / 2)[-1])
        square = cast(Squares, squares_of(self._loss))
        factors = [part for part in (square.x, square.readout) if part is not None]
        weight = 1.0 if square.weight is None else abs(float(square.weight))
        return weight * math.prod(float(torch.linalg.matrix_norm(part, 2)) for part in factors) ** 2 * math.exp(2 * ell)

    @property
    def evaluations(self) -> int:
        return int(self._steps.evaluations)

    @property
    def products(self) -> int:
        return int(self._steps.products)

    def step(self, here: Place, end: float, most: int) -> Place | None:
        """Where an accepted step leads, on the way to the time `end`, in so many evaluations at most.

        None where the caller has to take it; the differences are then what they were. The loss is read anew: an
        observer may have changed it.
        """
        steps = self._steps
        if not self._read():
            steps.linear = steps.factored = 0
            return None
        steps.t, steps.size, steps.order, steps.equal = here.t, here.size, here.order, here.equal
        steps.most, steps.end = most, end
        if not self._take(self._reference):
            return None
        return Place(steps.t, steps.size, steps.order, steps.equal, steps.degree, steps.length)

    def _read(self) -> bool:
        """Whether the loss is of the kind that there is room for; its numbers are found again where they have moved."""
        square = squares_of(self._loss)
        where = (
            None
            if square is None
            else [part is not None and (part.data_ptr(), part.shape, part.stride(), part.dtype) for part in square]
        )
        if where is not None and where == self._where:
            return True
        known = squares.given(self._loss, (), self._steps.d)
        if known is None or known[0].sizes != self._sizes:
            return False
        self._steps.loss, self._alive = known
        # What was copied is not seen to change.
        self._where = where if all(part is None or part.is_contiguous() for part in cast(Squares, square)) else None
        return True


def ndf_steps(loss: Any, state: Tensor, formulas: Formulas) -> NdfSteps | None:
    """What takes steps of a state `(2, d, d)`; None where the engine does not."""
    d = state.shape[-1]
    known = squares.given(loss, (), d) if takes(state) and state.ndim == 3 else None
    return None if known is None else NdfSteps(loss, known, d, formulas)
