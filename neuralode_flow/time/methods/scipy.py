"""The solver classes of `scipy.integrate`, driven step by step, under their own names."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from ...compat import radau_polynomial
from ..base import METHODS, Memory, Start, Stepper
from ..endings import Stopped
from ..formulas import ScipyFormula

# Their own interpolation between steps is of lower order than the step, so steps are made to end on output times.
RUNGE_KUTTA = ("RK23", "RK45", "DOP853")
# Interpolation by the polynomial of the method itself is as accurate as the step.
INTERPOLATING = ("BDF", "LSODA")

# These keep a dense Jacobian, unless they are given another.
DENSE = ("Radau", *INTERPOLATING)

# Dense Jacobians above this many bytes are refused before they are asked for.
_LARGEST_JACOBIAN = 2**32

# Radau starts a step from the cubic of the one before; where it is so many times as long, that makes 1e9 of round-off.
_TOO_FAR = 1e3


class ScipyStepper(Stepper):
    """A solver class of SciPy; the state is handed over as a flat float64 array."""

    def __init__(self, start: Start, *, name: str, **options: Any) -> None:
        super().__init__(start, name=name, **options)
        if name in DENSE and "jac" not in options:
            _check_jacobian(name, start.state.numel())
            if start.velocity.knows_jacobian(start.state):
                options["jac"] = self._jacobian
        self.name = name
        # A slope that is remembered: then the solver is made without an evaluation, and what it computes is replaced.
        self._slope = start.memory.get("f")
        if self.h:
            options = options | {"first_step": min(self.h, start.end - start.t)}
        control = start.control
        self._solver = getattr(scipy.integrate, name)(
            self._right_hand_side,
            start.t,
            to_array(start.state),
            start.end,
            rtol=control.rtol,
            atol=control.atol,
            **options,
        )
        # SciPy's own tolerance of Newton's method, of those that have one.
        self._usual: float | None = getattr(self._solver, "newton_tol", None)
        if self._slope is not None:
            self._restore(start.memory)
            self._slope = None

    def _newton_tolerance(self, usual: float) -> float:
        """How accurately the equations of the next step are solved, in tolerances.

        SciPy takes the root of rtol, and no less than round-off makes of rtol. Where atol is the tolerance, and rtol as
        small as may be (as of flows in logarithms), the latter is a tenth, which the error of a step does not see.
        """
        size = max(1.0, float(np.abs(self._solver.y).max(initial=0.0)))
        relative = max(self._solver.rtol, self.control.atol / size)
        floor = 10 * float(np.finfo(float).eps) / relative
        return max(floor, min(usual, max(floor, relative**0.5)) / self.control.solved)

    def _right_hand_side(self, t: float, y: np.ndarray) -> np.ndarray:
        return np.array(self._slope) if self._slope is not None else to_array(self.velocity(t, to_state(y, self.state)))

    def _jacobian(self, t: float, y: np.ndarray) -> np.ndarray:
        if self._slope is not None:  # as for the slope, what is remembered comes in its place
            return np.zeros((len(y), len(y)))
        J = self.velocity.jacobian(t, to_state(y, self.state))
        return to_array(J).reshape(len(y), len(y))

    def _restore(self, memory: Memory) -> None:
        """Puts back what `memory()` took; for methods whose memory holds a slope."""

    def _step(self, goal: float) -> None:
        message = self._one_step()
        if self._solver.status == "failed":
            raise Stopped("underflow", f"{self.name} of SciPy stopped at t = {self._solver.t:.6g}: {message}")
        self.t, self.state = float(self._solver.t), to_state(self._solver.y, self.state)

    def _one_step(self) -> str | None:
        if self._usual is not None:
            self._solver.newton_tol = self._newton_tolerance(self._usual)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # LSODA tells of its failures by a warning
            try:
                return self._solver.step()
            except UserWarning as error:
                raise Stopped("underflow", f"{self.name} of SciPy stopped at t = {self.t:.6g}: {error}") from error


class EndingStepper(ScipyStepper):
    """One of the one-step methods of SciPy: its steps end on the output times."""

    formula = ScipyFormula

    def _step(self, goal: float) -> None:
        solver = self._solver
        solver.t_bound, solver.status = goal, "running"
        proposed = solver.h_abs
        super()._step(goal)
        if self.t == goal:
            solver.h_abs = max(solver.h_abs, proposed)  # a step cut short says nothing about the next one

    def _slopes(self) -> tuple[Tensor, Tensor]:
        return to_state(self._before.memory["f"], self.state), to_state(self._solver.f, self.state)

    def _restore(self, memory: Memory) -> None:
        self._solver.f, self._solver.h_abs = np.asarray(memory["f"]), float(memory["h_abs"])
        if "y" in memory:
            self._solver.y = np.asarray(memory["y"])

    def memory(self) -> dict[str, Any]:
        kept = {"h": self.h, "f": self._solver.f, "h_abs": self._solver.h_abs}
        # A state of float32 has fewer digits than what the solver goes on with.
        return kept if self.state.dtype == torch.float64 else kept | {"y": self._solver.y}


class RadauStepper(EndingStepper):
    """Radau IIA: it also remembers its Jacobian, the factors, and the last polynomial, where the next one starts."""

    iterates = True

    _NUMBERS = ("h_abs_old", "error_norm_old")
    _OPTIONAL = (*_NUMBERS, "jac_factor")  # the latter is of Jacobians by differences
    _ARRAYS = ("LU_real", "LU_complex")

    def _step(self, goal: float) -> None:
        solver = self._solver
        if solver.sol is not None and min(solver.h_abs, goal - self.t) > _TOO_FAR * (solver.t - solver.t_old):
            # The last step was cut short: its polynomial is of no use so far out, where it may even overflow, its
            # factors are of another step, and its error says nothing about the next one.
            solver.sol = solver.LU_real = solver.LU_complex = None
            solver.h_abs_old = solver.error_norm_old = None
        super()._step(goal)

    def _restore(self, memory: Memory) -> None:
        super()._restore(memory)
        solver = self._solver
        solver.J, solver.current_jac = np.asarray(memory["J"]), bool(memory["current_jac"])
        if "jac_factor" in memory:
            solver.jac_factor = np.asarray(memory["jac_factor"])
        for name in self._NUMBERS:
            setattr(solver, name, float(memory[name]) if name in memory else None)
        for name in self._ARRAYS:
            factors = (np.asarray(memory[name]), np.asarray(memory[f"{name}_pivots"])) if name in memory else None
            setattr(solver, name, factors)
        if "Q" in memory:
            solver.t_old = float(memory["t_old"])
            solver.sol = radau_polynomial(solver.t_old, self.t, np.asarray(memory["y_old"]), np.asarray(memory["Q"]))

    def memory(self) -> dict[str, Any]:
        solver = self._solver
        kept = super().memory() | {"J": solver.J, "current_jac": solver.current_jac}
        kept |= {name: getattr(solver, name) for name in self._OPTIONAL if getattr(solver, name) is not None}
        for name in self._ARRAYS:
            if getattr(solver, name) is not None:
                kept[name], kept[f"{name}_pivots"] = getattr(solver, name)
        if solver.sol is not None:
            kept |= {"t_old": solver.sol.t_old, "y_old": solver.sol.y_old, "Q": solver.sol.Q}
        return kept


class InterpolatingStepper(ScipyStepper):
    """A multistep method of SciPy: it steps on as it likes, and its own polynomial gives what lies between."""

    one_step = False

    def at(self, t: float) -> Tensor:
        return self.state if t == self.t else to_state(self._solver.dense_output()(t), self.state)


def to_array(state: Tensor) -> np.ndarray:
    """A state as a flat float64 array."""
    if state.dtype == torch.float64 and state.is_cpu and not state.requires_grad:
        return state.numpy().reshape(-1)
    return state.detach().reshape(-1).double().cpu().numpy()


def to_state(y: np.ndarray, like: Tensor) -> Tensor:
    """A flat array as a state of the shape, dtype and device of another."""
    return torch.from_numpy(np.array(y)).to(like).reshape(like.shape)


def _check_jacobian(name: str, n: int) -> None:
    """Raises ValueError where a dense Jacobian of n × n numbers has no place."""
    size = 8 * n**2
    if size > _LARGEST_JACOBIAN:
        raise ValueError(
            f"method = {name!r} keeps a dense Jacobian, {size / 2**30:.0f} GiB for a state of {n} numbers: "
            f"use 'auto' or 'CVODE_BDF', which need none"
        )


for _name in RUNGE_KUTTA:
    METHODS.register(_name)(partial(EndingStepper, name=_name))
METHODS.register("Radau")(partial(RadauStepper, name="Radau"))
for _name in INTERPOLATING:
    METHODS.register(_name)(partial(InterpolatingStepper, name=_name))
