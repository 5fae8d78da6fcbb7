"""CVODE of SUNDIALS through scikit-sundae: multistep methods whose linear systems need no matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ...threads import late_blas
from ..base import METHODS, Start, Stepper
from ..endings import Stopped
from .scipy import to_array, to_state

# CVODE bounds the error of a step; over a run of BDF the errors add up to about three times the tolerance.
_LOCAL = {"BDF": 0.3, "Adams": 1.0}
_KRYLOV_DIMENSION = 10

# States of at most this many numbers get a dense Jacobian by differences: it costs fewer evaluations, and GMRES without
# a preconditioner takes tiny steps where atol is far below rtol times the entries.
_DENSE = 128

# Where the flow makes its Jacobian in one go it is dense up to here: d = 16 in logarithms, a factorisation of 10 ms.
_DENSE_KNOWN = 512
_LAPACK = 64  # numbers from which LAPACK is faster than the loops of SUNDIALS
_NO_LIMIT = 2**31 - 1


class CvodeStepper(Stepper):
    """Adams or BDF of variable order and step; Newton's equations by GMRES with Jacobian–vector products.

    The products are exact where the flow has a linearisation, else difference quotients of the velocity. Small states
    get a dense Jacobian: exact where the flow makes it in one go, else by differences. Between steps its own polynomial
    interpolates.
    """

    one_step = False

    def __init__(self, start: Start, *, method: str) -> None:
        with late_blas():
            from sksundae.cvode import CVODE, CVODEJacTimes  # only a run that needs it waits for it

        super().__init__(start, method=method)
        self._derivative: Callable[[Tensor], Tensor] | None = None
        n = start.state.numel()
        options: dict[str, Any] = {"linsolver": "lapackdense" if n >= _LAPACK else "dense"}
        if n <= _DENSE_KNOWN and start.velocity.knows_jacobian(start.state):
            options["jacfn"] = self._jacobian
        elif n > _DENSE:
            options = {"linsolver": "gmres", "krylov_dim": _KRYLOV_DIMENSION}
            if start.velocity.linearised(start.t, start.state) is not None:
                options["jactimes"] = CVODEJacTimes(self._linearise, self._product)
        self._solver = CVODE(
            self._right_hand_side,
            method=method,
            rtol=_LOCAL[method] * start.control.rtol,
            atol=_LOCAL[method] * start.control.atol,
            first_step=min(self.h, start.end - start.t),
            max_num_steps=_NO_LIMIT,
            **options,
        )
        self._solver.init_step(start.t, to_array(start.state))

    def _right_hand_side(self, t: float, y: np.ndarray, yp: np.ndarray) -> None:
        yp[:] = to_array(self.velocity(t, to_state(y, self.state)))

    def _jacobian(self, t: float, y: np.ndarray, yp: np.ndarray, J: np.ndarray) -> None:
        J[:] = to_array(self.velocity.jacobian(t, to_state(y, self.state))).reshape(J.shape)

    def _linearise(self, t: float, y: np.ndarray, yp: np.ndarray) -> None:
        self._derivative = self.velocity.linearised(t, to_state(y, self.state))

    def _product(self, t: float, y: np.ndarray, yp: np.ndarray, v: np.ndarray, Jv: np.ndarray) -> None:
        assert self._derivative is not None
        Jv[:] = to_array(self._derivative(to_state(v, self.state)))

    def _step(self, goal: float) -> None:
        while True:
            reached = self._asked(self.end, "onestep", self.end)
            if reached.t > self.t:  # after an interpolation CVODE first comes back to where it stands
                break
        self.t, self.state = float(reached.t), to_state(reached.y, self.state)

    def _asked(self, t: float, mode: str, stop: float | None = None) -> Any:
        result = self._solver.step(t, method=mode, tstop=stop)
        if not result.success:
            raise Stopped("underflow", f"CVODE of SUNDIALS stopped at t = {self.t:.6g}: {result.message}")
        return result

    def at(self, t: float) -> Tensor:
        return self.state if t == self.t else to_state(self._asked(t, "normal").y, self.state)


for _method in ("Adams", "BDF"):
    METHODS.register(f"CVODE_{_method}")(partial(CvodeStepper, method=_method))
