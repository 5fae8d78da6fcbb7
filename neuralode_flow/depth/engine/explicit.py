"""Explicit Runge–Kutta steps in the compiled engine: all stages of many states, each with steps of its own."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...losses import squares_of
from .. import picard
from ..workspace import Workspace
from . import compiled, divided, squares

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule

# Numbers of a state up to which its slopes of all stages are kept side by side; beyond, velocities are all the work.
LARGEST = 2**18

# Bytes of the stages of as many states as are taken together where the loss is asked between them: they fit caches.
_TOGETHER = 2**21

# Multiplications of a call of `runs`, roughly, a velocity is worth besides, and steps in it, after which somebody is to
# look at clock and signals; fewer of a loss that is asked at each stage, which may take long.
_AT_ONCE, _BESIDES, _ROUNDS, _ROUNDS_ASKED = 2**28, 2**11, 256, 16

_WORKSPACE = Workspace()


class Tableau(NamedTuple):
    """An explicit formula with S slopes after the first, the last of them where the step ends.

    Attributes
    ----------
    weights : ndarray (S, S + 1)
        What of the slopes before it leads to each stage; the last row leads to the end of the step.
    solution : ndarray (S + 1,) or None
        What leads there, where that is another combination of all slopes.
    errors : ndarray (1, S + 1) or (2, S + 1)
        What of the slopes is the error; of two, the second is the one of order 3 of DOP853.
    rtol, atol : float
    """

    weights: np.ndarray
    solution: np.ndarray | None
    errors: np.ndarray
    rtol: float
    atol: float


class Tried(NamedTuple):
    """Where steps lead, the slopes there, of the shape of the states, and errors over tolerances `(n,)`.

    The error is NaN, and nothing else means anything, of a step whose velocities could not be had or are not finite.
    """

    ahead: Tensor
    slope: Tensor
    error: np.ndarray

    def of_all(self) -> Tried:
        """The only one, of all states together."""
        return Tried(self.ahead[0], self.slope[0], self.error[0])

    def without(self, axis: int) -> Tried:
        """The same without an axis of length 1 of the states."""
        return Tried(self.ahead.squeeze(axis), self.slope.squeeze(axis), self.error)


class Pace(NamedTuple):
    """How sizes of steps are chosen (time/formulas.py); what is of the factor by which a step changes.

    Attributes
    ----------
    rules : int
        SCIPY or TORCHDIFFEQ, whose they are.
    exponent : float
        Of the error over the tolerance.
    safety, least, most : float
    """

    rules: int
    exponent: float
    safety: float
    least: float
    most: float


SCIPY, TORCHDIFFEQ = range(2)


# The largest number of C that is counted with.
LONGEST = int(np.iinfo("l").max) // 2


class Legs(NamedTuple):
    """Where states stand on their way to a goal, `(n,)` each, and how they go on.

    Attributes
    ----------
    t, h : ndarray
        Times, and the next steps.
    begun, again : ndarray
        As what these began where they have been tried before, and whether they have.
    left : ndarray of int
        How many velocities may still be had, at most `LONGEST`.
    goal : float
    pace : Pace
    sign : ndarray or None
        The sign of det z that is to stay.
    """

    t: np.ndarray
    h: np.ndarray
    begun: np.ndarray
    again: np.ndarray
    left: np.ndarray
    goal: float
    pace: Pace
    sign: np.ndarray | None


class Ran(NamedTuple):
    """Where states have come to, `(n,)` each; a step whose velocities could not be had leaves no trace.

    A row stands before its goal where it has tried as many steps as a call takes, has no velocities left for another
    one, where that one has no size or its velocities could not be had, or where somebody is to look at it: beyond the
    range of numbers, or where det z has lost its sign, or has none beyond doubt.

    Attributes
    ----------
    t, h, begun, again : ndarray
    y, f : Tensor
        States and slopes.
    since_t, since_h : ndarray
        Where the last step was taken from, and what was proposed there; where there was one.
    since_y, since_f : Tensor
    tried, took : ndarray of int
        How many steps were tried, and taken.
    z : Tensor or None
        The end-to-end maps of those that took a step, if they were asked for.
    """

    t: np.ndarray
    h: np.ndarray
    begun: np.ndarray
    again: np.ndarray
    y: Tensor
    f: Tensor
    since_t: np.ndarray
    since_h: np.ndarray
    since_y: Tensor
    since_f: Tensor
    tried: np.ndarray
    took: np.ndarray
    z: Tensor | None = None

    def without(self, axis: int) -> Ran:
        """The same without an axis of length 1 of the states."""
        y, f, since_y, since_f = (part.squeeze(axis) for part in (self.y, self.f, self.since_y, self.since_f))
        return self._replace(y=y, f=f, since_y=since_y, since_f=since_f)


class Model(NamedTuple):
    """What C has to know of a flow.

    Attributes
    ----------
    fields : dict
        Of its structure.
    matrices : int
        N of states `(..., N, d, d)`.
    products : int
        How many times twenty products a velocity costs.
    kept : object
        What must live as long.
    """

    fields: dict[str, Any]
    matrices: int
    products: int
    kept: Any = None


# As in pace.h.
_STAND = np.dtype([("t", "f8"), ("h", "f8"), ("begun", "f8"), ("again", "i4")], align=True)
_TRY = np.dtype([("h", "f8"), ("end", "f8"), ("proposed", "f8")])


class _Pace(ctypes.Structure):
    """As in pace.h."""

    _fields_ = (("rules", ctypes.c_int), *((name, ctypes.c_double) for name in Pace._fields[1:]))


class _Legs(ctypes.Structure):
    """As in engine.c."""

    _fields_ = (
        ("pace", _Pace),
        ("goal", ctypes.c_double),
        ("rounds", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("stands", "since", "since_y", "since_f", "tries")),
        *((name, ctypes.c_void_p) for name in ("left", "tried", "took", "going", "sign", "z")),
    )


class _Steps(ctypes.Structure):
    """As in engine.c; what is not set is computed there."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "members", "L", "N", "numbers", "size")),
        *((name, ctypes.c_int) for name in ("panels", "m", "d", "rule", "polar", "threads", "stages", "estimates")),
        *((name, ctypes.c_double) for name in ("alpha", "rtol", "atol")),
        *((name, ctypes.c_void_p) for name in ("J", "ends", "weights", "solution", "errors")),
        ("loss", squares.Given),
        ("layers", divided.Given),
        *((name, ctypes.c_void_p) for name in ("h", "y", "f", "ahead", "slope", "error", "z", "G", "legs")),
    )


def takes(states: Tensor, rule: LayerRule | None = None) -> bool:
    """Whether steps of states `(n, ..., N, d, d)` are for the engine."""
    known = rule is None or compiled.number_of(rule) != compiled.PLAIN
    return known and compiled.takes(states) and 0 < states.numel() <= states.shape[0] * LARGEST


def on_grid(grid: DepthGrid) -> Model:
    """The flow of W on the nodes of a grid, −P(1,s_i)ᵀ G P(s_i,0)ᵀ with the gradient G of the loss."""
    J, ends = picard.integrals(grid.panels, grid.order, torch.float64, torch.device("cpu"))
    fields = {"panels": grid.panels, "m": grid.order, "J": J.data_ptr(), "ends": ends.data_ptr()}
    return Model(fields, len(grid), len(grid))


def of_layers(layers: int, rule: LayerRule, depth: int) -> Model | None:
    """That of layers: minus the gradient in all W_k/depth of U_k = rule(W_k/depth); None where C has not the rule."""
    number = compiled.number_of(rule)
    fields = {"L": layers, "rule": number, "alpha": 1 / depth}
    return None if number == compiled.PLAIN else Model(fields, layers, layers)


# The closed flow in logarithms `(..., 2, d, d)` with the kernel of infinite depth.
CLOSED = Model({"polar": 1}, 2, 3)


def closed_of_layers(shifts: Tensor, scale: float, states: Tensor) -> Model | None:
    """That of layers, on z `(..., 1, d, d)`; None where C does not take it."""
    if not divided.takes(states) or (known := divided.given(shifts, scale, tuple(states.shape[:-3]))) is None:
        return None
    return Model({"layers": known[0]}, 1, 3 + known[0].L // 6, known[1])


def steps(
    model: Model | None, states: Tensor, slopes: Tensor, h: np.ndarray, loss: Any, tableau: Tableau
) -> Tried | None:
    """A step of each state `(n, ..., N, d, d)` along its slope, of size h `(n,)`; None where the engine takes none.

    A step h `()` is that of all states `(..., N, d, d)` together.
    """
    shared, h = np.ndim(h) == 0, np.array(h, dtype=float, ndmin=1)
    if shared:
        states, slopes = states[None], slopes[None]
    _check(model, states, slopes, h)
    if model is None or not takes(states) or not compiled.is_numbers(slopes):
        return None
    rows = _Rows(states.contiguous(), slopes.contiguous(), h)
    if not _taken(_task(model, rows.y, tableau), rows, loss, shared):
        return None
    tried = Tried(rows.ahead, rows.slope, rows.error)
    return tried.of_all() if shared else tried


def runs(
    model: Model | None, states: Tensor, slopes: Tensor, legs: Legs, loss: Any, tableau: Tableau, *, maps: bool = False
) -> Ran | None:
    """Steps of states `(n, N, d, d)`, each on its way to the goal as far as it comes; None where there are none.

    Each is what it would be by `steps` and the rules of `legs.pace`, to the bit if the gradient of a state is the same
    whichever others are asked for with it. With `maps` the z of products of matrices is told.
    """
    _check(model, states, slopes, legs.h)
    if model is None or tableau.solution is not None or not takes(states) or not compiled.is_numbers(slopes):
        return None
    n, kept = len(states), torch.contiguous_format
    rows = _Rows(states.clone(memory_format=kept), slopes.clone(memory_format=kept), np.empty(n))
    velocity = 20 * model.products * states.shape[-1] ** 3 + _BESIDES
    known = squares_of(loss) is not None
    rounds = min(_AT_ONCE // (velocity * len(tableau.weights) * n), _ROUNDS if known else _ROUNDS_ASKED)
    z = states.new_empty(*states.shape[:-3], *states.shape[-2:]) if maps else None
    way = _Way(rows, legs, max(1, rounds), z)
    return way.ran() if _taken(_task(model, rows.y, tableau), rows, loss, False, way) else None


def _check(model: Model | None, states: Tensor, slopes: Tensor, h: np.ndarray) -> None:
    """Raises unless these are states of the model, and slopes and sizes of steps are theirs."""
    if states.shape != slopes.shape or h.shape != states.shape[:1]:
        raise ValueError(
            f"slopes and h must be those of {len(states)} states {tuple(states.shape)}, "
            f"got shapes {tuple(slopes.shape)} and {h.shape}"
        )
    if model is not None and states.shape[-3] != model.matrices:
        raise ValueError(f"states must be of {model.matrices} matrices, got shape {tuple(states.shape)}")


class _Rows:
    """States that are stepped along their slopes by h, and where what comes of it is put."""

    def __init__(self, y: Tensor, f: Tensor, h: np.ndarray) -> None:
        self.y, self.f, self.h = y, f, h
        self.ahead, self.slope, self.error = torch.empty_like(y), torch.empty_like(y), np.empty(len(y))

    def given(self, task: _Steps, some: slice) -> None:
        """Writes down where the numbers of some of them are."""
        task.rows = len(self.h[some])
        task.h, task.error = self.h[some].ctypes.data, self.error[some].ctypes.data
        task.y, task.f, task.ahead, task.slope = (
            part[some].data_ptr() for part in (self.y, self.f, self.ahead, self.slope)
        )


class _Way:
    """Rows on their way."""

    def __init__(self, rows: _Rows, legs: Legs, rounds: int, z: Tensor | None) -> None:
        n = len(rows.h)
        self.rows, self.z, self.stands = rows, z, np.empty(n, dtype=_STAND)
        for name in ("t", "h", "begun", "again"):
            self.stands[name] = getattr(legs, name)
        self.since, self.tries = self.stands.copy(), np.empty(n, dtype=_TRY)
        self.since_y, self.since_f = torch.empty_like(rows.y), torch.empty_like(rows.f)
        self.left, self.tried, self.took = (np.full(n, part, "l") for part in (legs.left, 0, 0))
        self.going = np.ones(n, dtype=np.intc)
        self.sign = None if legs.sign is None else np.full(n, legs.sign, "d")
        self._task = _Legs(pace=_Pace(*legs.pace), goal=legs.goal, rounds=rounds)

    def given(self, some: slice) -> int:
        """Writes down where the numbers of some of them are, and says where that is."""
        task = self._task
        for name in ("stands", "since", "tries", "left", "tried", "took", "going", "sign"):
            part = getattr(self, name)
            setattr(task, name, None if part is None else part[some].ctypes.data)
        task.since_y, task.since_f = self.since_y[some].data_ptr(), self.since_f[some].data_ptr()
        task.z = None if self.z is None else self.z[some].data_ptr()
        return ctypes.addressof(task)

    def ran(self) -> Ran:
        here, since, rows = self.stands, self.since, self.rows
        return Ran(
            here["t"], here["h"], here["begun"], here["again"] != 0, rows.y, rows.f,
            since["t"], since["h"], self.since_y, self.since_f, self.tried, self.took, self.z,
        )  # fmt: skip


def _task(model: Model, states: Tensor, tableau: Tableau) -> _Steps:
    """What is known beside the states and the loss."""
    weights, solution, errors = tableau.weights, tableau.solution, tableau.errors
    return _Steps(
        members=math.prod(states.shape[1:-3]), d=states.shape[-1], threads=torch.get_num_threads(), **model.fields,
        stages=len(weights), estimates=len(errors), rtol=tableau.rtol, atol=tableau.atol,
        weights=weights.ctypes.data, solution=None if solution is None else solution.ctypes.data,
        errors=errors.ctypes.data,
    )  # fmt: skip


def _taken(task: _Steps, rows: _Rows, loss: Any, shared: bool, way: _Way | None = None) -> bool:
    """Whether steps could be taken: whole ones where the loss is a square, else it is asked at each stage."""
    states, n = rows.y, len(rows.y)
    known = squares.given(loss, tuple(states.shape[:-3]), task.d)
    most = n if known else max(1, _TOGETHER // (8 * states[0].numel() * (task.stages + 2)))
    shifts, own = task.layers.shifts, 8 * task.members * task.layers.apart
    for i in range(0, n, most):
        some = slice(i, i + most)
        rows.given(task, some)
        task.layers.shifts = shifts and shifts + i * own
        if way is not None:
            task.legs = way.given(some)
        if known:
            task.loss = known[0]
            _whole(task, states)
            continue
        part = loss if n <= most else _of(loss, torch.arange(n, device="cpu")[some], n)
        going = None if way is None else way.going[some]
        if not _by_stages(task, part, states.new_empty(*states[some].shape[:-3], task.d, task.d), shared, going):
            return False
    return True


def _of(loss: Any, index: Tensor, n: int) -> Any:
    """That of some of n states."""
    return loss.select((n,), index) if hasattr(loss, "select") else loss


def _whole(task: _Steps, like: Tensor) -> None:
    """Whole steps."""
    library = compiled.loaded()
    with _WORKSPACE.lend() as take:
        room = take("steps", (-(-library.attempt_scratch(ctypes.byref(task)) // 8),), like)
        library.attempt(ctypes.byref(task), room.data_ptr(), 0)


def _by_stages(task: _Steps, loss: Any, z: Tensor, shared: bool, going: np.ndarray | None) -> bool:
    """The same, of any loss; False where it does not give numbers. With `going`, until most of the rows rest."""
    library, G = compiled.loaded(), torch.empty_like(z)
    task.z, task.G = z.data_ptr(), G.data_ptr()
    with _WORKSPACE.lend() as take:
        # Of a size that stays when a few members have come to their end.
        room = take("stages", (1 << (library.attempt_scratch(ctypes.byref(task)) // 8).bit_length(),), z)
        while True:
            for k in range(1, task.stages + 1):
                library.attempt(ctypes.byref(task), room.data_ptr(), k)
                if going is not None and k == 1 and not going.any():
                    return True
                # A tensor of its own, which the loss may keep, and of the shape that it has in a velocity.
                gradient = loss.gradient((z[0] if shared else z).clone())
                if not compiled.is_numbers(gradient):
                    return False
                G.copy_(gradient).neg_()
            library.attempt(ctypes.byref(task), room.data_ptr(), task.stages + 1)
            if going is None or 2 * going.sum() < len(going):
                return True
