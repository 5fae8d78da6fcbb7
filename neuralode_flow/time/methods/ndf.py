"""Numerical differentiation formulas, whose linear systems the flow solves itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...depth.engine.polar import Formulas, NdfSteps, Place
from ..base import Control, Start, Stepper
from ..endings import Stopped
from .scipy import to_array, to_state

Solve = Callable[[Tensor], Tensor]

# Highest order; coefficients by order, of the paper: κ, Σ 1/j, and what an equation of order q is divided by.
_ORDERS = 5
_KAPPA = np.array([0.0, -0.185, -1 / 9, -0.0823, -0.0415, 0.0])
_GAMMA = np.append(0.0, np.cumsum(1 / np.arange(1, _ORDERS + 1)))
_ALPHA = (1 - _KAPPA) * _GAMMA
# The error of a step of order q is that times the backward difference q + 1.
_ERROR = _KAPPA * _GAMMA + 1 / np.arange(1, _ORDERS + 2)

# The steps of a run are held to that part of the tolerance, since their errors add up, and may grow on the way.
_LOCAL = 0.05

# Newton's iteration ends where what is left is below that part of the tolerance of a step, or after so many sweeps.
_NEWTON, _SWEEPS = 0.1, 4

# An update of so many times the entries is round-off, whatever the tolerance is.
_ROUND_OFF = 2 * np.finfo(float).eps

# A step is made longer where that is worth a factorisation, and at most so much.
_WORTH, _LONGER, _SHORTER, _SAFETY = 1.2, 10.0, 0.2, 0.9


class NdfStepper(Stepper):
    """The formulas of order 1 to 5 in backward differences (Shampine–Reichelt, SIAM J. Sci. Comput. 18, 1997).

    Newton's systems (1 − γJ) x = r are solved by what the flow makes for them (`flows.capabilities.Resolves`), at a
    state for many steps and for a γ until the step changes.
    """

    one_step = False

    def __init__(self, start: Start, whole: NdfSteps | None = None) -> None:
        super().__init__(start)
        y = to_array(start.state)
        slope = self._slope(self.t, y)
        self._weights(y)
        self._size = min(self.h or 0.01 / max(self._norm(slope), 1e-300), self.end - self.t)
        self._whole = whole or whole_steps(start)
        self._differences = np.zeros((_ORDERS + 3, len(y))) if self._whole is None else self._whole.differences
        self._differences[:2] = y, self._size * slope
        self._order, self._equal = 1, 0
        self._resolvent: Callable[[float], Solve] | None = None
        self._solve: Solve | None = None
        self._contraction: float | None = None
        self._polynomial = (self.t, self._size, self._differences[:2].copy())

    def _state(self, y: np.ndarray) -> Tensor:
        """An array that nobody writes into any more, as a state."""
        return torch.from_numpy(y.reshape(self.state.shape)).to(self.state)

    def _slope(self, t: float, y: np.ndarray) -> np.ndarray:
        return to_array(self.velocity(t, self._state(y)))

    def _weights(self, y: np.ndarray) -> None:
        control = self.control
        self._weight = 1 / (_LOCAL * (control.atol + control.rtol * np.abs(y)) * len(y) ** 0.5)

    def _norm(self, vector: np.ndarray) -> float:
        """In tolerances, the root mean square over all entries."""
        weighted = vector * self._weight
        return float(weighted @ weighted) ** 0.5

    def _step(self, goal: float) -> None:
        if self._whole is None or not self._whole_step(self._whole):
            self._by_velocities()

    def _whole_step(self, steps: NdfSteps) -> bool:
        """A step that the flow takes; False where it does not."""
        ahead = self.velocity.implicit_step(steps, Place(self.t, self._size, self._order, self._equal), self.end)
        if ahead is None:
            return False
        self.t, self._size, self._order, self._equal = ahead[:4]
        self.state = self._state(self._differences[0].copy())
        self._polynomial = (self.t, ahead.length, steps.polynomial[: ahead.degree + 1])
        self._resolvent = None
        return True

    def _by_velocities(self) -> None:
        while True:
            if self.t + self._size > self.end:
                self._resize((self.end - self.t) / self._size)
            if self._size <= 8 * np.spacing(abs(self.t)):
                raise Stopped(
                    "underflow", f"the step size of NDF underflowed at t = {self.t:.6g}: use larger tolerances"
                )
            change = self._corrected()
            if change is None:
                self._resize(0.5)
                continue
            error = _ERROR[self._order] * self._norm(change)
            if error <= 1:
                break
            self._resize(max(_SHORTER, _SAFETY * error ** (-1 / (self._order + 1))))
        self._accept(change)

    def _corrected(self) -> np.ndarray | None:
        """The solution less its prediction; None where Newton's iteration fails with a Jacobian from here."""
        q, D = self._order, self._differences
        t, gamma = self.t + self._size, self._size / _ALPHA[q]
        predicted = D[: q + 1].sum(0)
        history = _GAMMA[1 : q + 1] @ D[1 : q + 1] / _ALPHA[q]
        self._weights(predicted)
        fresh = False
        while True:
            if self._resolvent is None:
                fresh, self._solve = True, None
                self._resolvent = self.velocity.resolvent(t, self._state(predicted))
            if self._solve is None:
                self._solve, self._contraction = self._resolvent(gamma), None
            change = self._newton(self._solve, t, gamma, predicted, history)
            if change is not None or fresh:
                return change
            self._resolvent = None

    def _newton(
        self, solve: Solve, t: float, gamma: float, predicted: np.ndarray, history: np.ndarray
    ) -> np.ndarray | None:
        """The change y with γ v(t, predicted + y) = history + y; None where the iteration converges too slowly.

        How fast it converges is remembered while the factors stay: then one sweep may do.
        """
        change, before = np.zeros_like(predicted), None
        floor = self._norm(_ROUND_OFF * np.abs(predicted))
        for sweep in range(_SWEEPS):
            residual = gamma * self._slope(t, predicted + change) - history - change
            update = to_array(solve(self._state(residual)))
            size = self._norm(update)
            if not math.isfinite(size):
                return None
            if before and (size > floor or self._contraction is None):
                self._contraction = size / before
            if size <= floor:
                return change + update
            rate = self._contraction
            if rate is not None and not (rate < 1 and rate ** (_SWEEPS - 1 - sweep) / (1 - rate) * size < _NEWTON):
                return None
            change += update
            if rate is not None and rate / (1 - rate) * size < _NEWTON:
                return change
            before = size
        return None

    def _accept(self, change: np.ndarray) -> None:
        q, D = self._order, self._differences
        t = self.t + self._size
        self.t = self.end if self.end - t <= 8 * np.spacing(abs(self.end)) else t
        D[q + 2] = change - D[q + 1]
        D[q + 1] = change
        for k in range(q, -1, -1):
            D[k] += D[k + 1]
        self.state = to_state(D[0], self.state)
        self._polynomial = (self.t, self._size, D[: q + 1].copy())
        self._equal += 1
        if self._equal > q:
            self._choose()

    def _choose(self) -> None:
        """Takes the order, of the present one and its neighbours, that allows the longest step."""
        q, D = self._order, self._differences
        growth = {}
        for order in range(max(1, q - 1), min(_ORDERS, q + 1) + 1):
            error = _ERROR[order] * self._norm(D[order + 1])
            growth[order] = _SAFETY * max(error, 1e-30) ** (-1 / (order + 1))
        best = max(growth, key=lambda order: growth[order])
        if growth[best] > _WORTH or growth[best] < 1 and best != q:
            self._order = best
            self._resize(min(_LONGER, growth[best]))

    def _resize(self, factor: float) -> None:
        """Differences of the same polynomial at another distance."""
        q = self._order
        self._differences[: q + 1] = (_spaced(q, factor) @ _spaced(q, 1.0)).T @ self._differences[: q + 1]
        self._size *= factor
        self._equal, self._solve = 0, None

    def at(self, t: float) -> Tensor:
        if t == self.t:
            return self.state
        end, h, D = self._polynomial
        k = np.arange(len(D) - 1)
        return to_state(D[0] + np.cumprod((t - end + h * k) / (h * (k + 1))) @ D[1:], self.state)

    def memory(self) -> dict[str, Any]:
        return super().memory() | {"stiff": True}


def whole_steps(start: Start) -> NdfSteps | None:
    """What takes whole steps from a start; None where these formulas are applied to velocities."""
    return start.velocity.implicit_steps(start.state, _formulas(start.control))


def _formulas(control: Control) -> Formulas:
    """The same, as flows take whole steps by it."""
    return Formulas(
        gamma=_GAMMA, alpha=_ALPHA, errors=_ERROR, sweeps=_SWEEPS, local=_LOCAL, newton=_NEWTON, worth=_WORTH,
        longer=_LONGER, shorter=_SHORTER, safety=_SAFETY, round_off=_ROUND_OFF, rtol=control.rtol, atol=control.atol,
    )  # fmt: skip


def _spaced(order: int, factor: float) -> np.ndarray:
    """What makes backward differences at a distance of those at another, with its inverse at factor 1."""
    i, j = np.arange(1, order + 1)[:, None], np.arange(1, order + 1)
    M = np.ones((order + 1, order + 1))
    M[1:, 1:] = np.cumprod((i - 1 - factor * j) / i, axis=0)
    M[1:, 0] = 0
    return M
