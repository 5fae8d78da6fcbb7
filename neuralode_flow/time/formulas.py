"""Runge–Kutta formulas on many members at once, each with its own step: the numbers are those of one alone.

Order of operations and controller are those of SciPy 1.17 and torchdiffeq 0.2.5, whose tableaus are used: products with
a tableau are one matrix–vector product for each member, and roots and powers are taken as there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from ..compat import torchdiffeq_solver
from ..depth.engine.explicit import SCIPY, TORCHDIFFEQ, Pace, Tableau
from .base import Control, Memory


class Rates(Protocol):
    """What formulas ask of the flow, at states `(m, N)` of the members in these rows."""

    def __call__(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        """Velocities `(m, N)`, and which of them could be had, booleans (m,)."""
        ...

    def jacobians(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        """Their derivatives `(m, N, N)`, likewise."""
        ...

    def explicit_steps(self, y: Tensor, f: Tensor, h: np.ndarray, tableau: Tableau) -> Attempt | None:
        """Whole steps of all members, of those for which the flow takes them; None where it takes none."""
        ...


class Plan(NamedTuple):
    """Steps that are to be tried, `(n,)` each.

    Their sizes, where they end, the least that is proposed after one that is cut short by an output time, and which are
    too small to be any.
    """

    h: np.ndarray
    end: np.ndarray
    proposed: np.ndarray
    lost: np.ndarray

    def of(self, rows: np.ndarray) -> Plan:
        """Some of them."""
        return Plan(*(part[rows] for part in self))


class Attempt(NamedTuple):
    """Steps that were tried: rows that were evaluated to the end, their states and slopes, errors over tolerances."""

    rows: np.ndarray
    y: Tensor
    f: Tensor
    error: Any

    def of(self, places: np.ndarray) -> Attempt:
        """Some of them."""
        if len(places) == len(self.rows):
            return self
        which = torch.from_numpy(places)
        return Attempt(self.rows[places], self.y[which], self.f[which], self.error[places])

    def beside(self, other: Attempt) -> Attempt:
        """With those of other members, in the order of their rows."""
        rows = np.concatenate((self.rows, other.rows))
        error = np.concatenate((self.error, np.asarray(other.error)))
        places = np.argsort(rows)
        order = torch.from_numpy(places)
        y, f = torch.cat((self.y, other.y)), torch.cat((self.f, other.f))
        return Attempt(rows[places], y[order], f[order], error[places])


class Formula(ABC):
    """One attempt of a step for many members; states and slopes are `(n, N)`, sizes of steps `(n,)`.

    1. `flat(states)` is `(n, ...)` as the formula holds it, `(n, N)`.
    2. `first(rates, y, f, length)` is the first step of each, NaN where the velocity could not be had; `length` is that
       of the run.
    3. `plan(t, h, goal, begun, again)` is what is tried of steps h; `again` where the step, which began as `begun`, was
       tried before.
    4. `tried(rates, y, f, h)` is the attempt.
    5. `judged(error, plan, again, ended)` says which steps are accepted, and what step is next; `again` where it was
       tried before, `ended` where it ends on an output time.
    6. `memory(f, h)` is what the method alone has to remember there, and `remembered(memory)` gives f and h of it, or
       None to have them computed.
    7. `on(device)` is the same formula for states that are there. On an accelerator nothing in `tried` waits for it,
       but velocities may; its error is a tensor `(n,)`, which `judged` looks at.
    8. `delays` are the parts of a step after which `tried` asks for velocities, as far as that is known.
    """

    delays: np.ndarray = np.empty(0)

    def on(self, device: torch.device) -> Formula:
        """The same formula for states on a device."""
        return self

    @abstractmethod
    def flat(self, states: Tensor) -> Tensor: ...

    @abstractmethod
    def first(self, rates: Rates, y: Tensor, f: Tensor, length: float) -> np.ndarray: ...

    @abstractmethod
    def plan(self, t: np.ndarray, h: np.ndarray, goal: float, begun: np.ndarray, again: np.ndarray) -> Plan: ...

    @abstractmethod
    def tried(self, rates: Rates, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt: ...

    @abstractmethod
    def judged(self, error: Any, plan: Plan, again: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    @abstractmethod
    def memory(self, f: Tensor, h: float) -> dict[str, Any]: ...

    def remembered(self, memory: Memory) -> tuple[Any, float] | None:
        return None


_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0


class ExplicitFormula(Formula):
    """Formulas whose steps are combinations of slopes: a flow that can take them as a whole does."""

    @property
    @abstractmethod
    def tableau(self) -> Tableau: ...

    @property
    def pace(self) -> Pace | None:
        """What `plan` and `judged` do, for the compiled engine; None where it does not know it."""
        return None

    @cached_property
    def delays(self) -> np.ndarray:  # type: ignore[override]
        return self.tableau.weights.sum(1)

    @abstractmethod
    def by_stages(self, rates: Rates, rows: np.ndarray, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        """`tried` of the members in these rows, one velocity after the other."""

    def tried(self, rates: Rates, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        rows = np.arange(len(y))
        whole = rates.explicit_steps(y, f, h, self.tableau)
        if whole is None:
            return self.by_stages(rates, rows, y, f, h)
        if len(whole.rows) == len(y):
            return whole
        # One by one: where torch has to compute a velocity it does so for all that are asked for with it.
        for row in np.setdiff1d(rows, whole.rows).tolist():
            one = slice(row, row + 1)
            whole = whole.beside(self.by_stages(rates, rows[one], y[one], f[one], h[one]))
        return whole


class ScipyFormula(ExplicitFormula):
    """RK23, RK45 and DOP853 of SciPy."""

    def __init__(self, control: Control, *, name: str) -> None:
        self.control, self.name = control, name
        self.method = getattr(scipy.integrate, name)
        self.rtol, self.atol = control.rtol, control.atol
        self.exponent = -1 / (self.method.error_estimator_order + 1)
        self._slopes: np.ndarray = np.empty((0, 0, 0))

    def on(self, device: torch.device) -> Formula:
        return self if device.type == "cpu" else ScipyOnDevice(self.control, name=self.name)

    def flat(self, states: Tensor) -> Tensor:
        return states.reshape(len(states), -1).double()

    def first(self, rates: Rates, y: Tensor, f: Tensor, length: float) -> np.ndarray:
        states, slopes = y.numpy(), f.numpy()
        scale = self.atol + np.abs(states) * self.rtol
        sizes, speeds = _rms(states / scale), _rms(slopes / scale)
        start = [
            min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, length)
            for d0, d1 in zip(sizes, speeds, strict=True)
        ]
        h0 = np.array(start)[:, None]
        after, had = rates(np.arange(len(y)), torch.from_numpy(states + h0 * slopes))
        bends = _rms((after.numpy() - slopes) / scale)
        found = np.full(len(y), np.nan)
        for i in np.flatnonzero(had):
            d1, d2 = speeds[i], bends[i] / start[i] if start[i] else math.inf
            slow = d1 <= 1e-15 and d2 <= 1e-15
            h1 = max(1e-6, start[i] * 1e-3) if slow else (0.01 / max(d1, d2)) ** -self.exponent
            found[i] = min(100 * start[i], h1, length)
        return found

    def plan(self, t: np.ndarray, h: np.ndarray, goal: float, begun: np.ndarray, again: np.ndarray) -> Plan:
        least = 10 * np.abs(np.nextafter(t, np.inf) - t)
        h = np.where(~again & (h < least), least, h)
        end = np.minimum(t + h, goal)
        return Plan(end - t, end, begun, h < least)

    @cached_property
    def tableau(self) -> Tableau:
        kind, n = self.method, self.method.n_stages
        weights = np.zeros((n, n + 1))
        weights[:-1, : kind.A.shape[1]], weights[-1, :n] = kind.A[1:n, :n], kind.B
        errors = np.array([kind.E5, kind.E3] if hasattr(kind, "E5") else [kind.E], dtype=float)
        return Tableau(weights, None, errors, self.rtol, self.atol)

    @property
    def pace(self) -> Pace | None:
        return Pace(SCIPY, self.exponent, _SAFETY, _LEAST, _MOST) if type(self) is ScipyFormula else None

    def by_stages(self, rates: Rates, rows: np.ndarray, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        kind, states = self.method, y.numpy()
        steps = h[:, None]
        K = self._room(len(y), states.shape[1])
        K[:, 0] = f.numpy()
        for s in range(1, kind.n_stages + 1):
            last = s == kind.n_stages
            weights = kind.B if last else kind.A[s, :s]
            trial = np.matmul(K[:, :s].transpose(0, 2, 1), weights)
            trial *= steps
            trial += states
            slope, had = rates(rows, torch.from_numpy(trial))
            if not had.all():
                rows, states, steps, K, trial = rows[had], states[had], steps[had], K[had], trial[had]
                slope = slope[torch.from_numpy(had)]
            K[:, s] = slope.numpy()
        scale = self.atol + np.maximum(np.abs(states), np.abs(trial)) * self.rtol
        return Attempt(rows, torch.from_numpy(trial), torch.from_numpy(K[:, -1].copy()), self._errors(K, steps, scale))

    def _room(self, number: int, size: int) -> np.ndarray:
        """Where the slopes of an attempt lie: the same memory for all of them."""
        if len(self._slopes) < number or self._slopes.shape[2] != size:
            self._slopes = np.empty((number, self.method.n_stages + 1, size))
        return self._slopes[:number]

    def _errors(self, K: np.ndarray, h: np.ndarray, scale: np.ndarray) -> list[float]:
        kind, stages = self.method, K.transpose(0, 2, 1)
        if not hasattr(kind, "E5"):
            return _rms(np.matmul(stages, kind.E) * h / scale)
        squares = [[x * x for x in _norms(np.matmul(stages, E) / scale)] for E in (kind.E5, kind.E3)]
        both = [(five + 0.01 * three) * scale.shape[1] for five, three in zip(*squares, strict=True)]
        return [
            size * five / math.sqrt(whole) if whole != 0 else 0.0  # 0 also where the second underflows
            for size, five, whole in zip(np.abs(h[:, 0]).tolist(), squares[0], both, strict=True)
        ]

    def judged(self, error: Any, plan: Plan, again: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes: list[float] = np.asarray(error).tolist()
        accepted = np.array([size < 1 for size in sizes], dtype=bool)
        h = plan.h.copy()
        for i, size in enumerate(sizes):
            if accepted[i]:
                factor = _MOST if size == 0 else min(_MOST, _SAFETY * size**self.exponent)
                h[i] *= min(1, factor) if again[i] else factor
            else:
                h[i] *= max(_LEAST, _SAFETY * size**self.exponent)
        return accepted, np.where(accepted & ended, np.maximum(h, plan.proposed), h)

    def memory(self, f: Tensor, h: float) -> dict[str, Any]:
        return {"h": h, "f": f.numpy(), "h_abs": h}

    def remembered(self, memory: Memory) -> tuple[Any, float] | None:
        return (memory["f"], float(memory["h_abs"])) if "f" in memory else None


class ScipyOnDevice(ScipyFormula):
    """The same formulas for states on an accelerator, in operations of torch: to round-off the same numbers."""

    def flat(self, states: Tensor) -> Tensor:
        return states.reshape(len(states), -1).double()

    @cached_property
    def _matrices(self) -> dict[str, Tensor]:
        """What products are taken with, on the device once it is known."""
        return {}

    def _on(self, name: str, y: Tensor) -> Tensor:
        if name not in self._matrices:
            self._matrices[name] = torch.from_numpy(getattr(self.method, name)).to(y)
        return self._matrices[name]

    def first(self, rates: Rates, y: Tensor, f: Tensor, length: float) -> np.ndarray:
        return first_step(rates, y, f, self.atol + y.abs() * self.rtol, -self.exponent, length)

    def tried(self, rates: Rates, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        A, B, number = self._on("A", y), self._on("B", y), self.method.n_stages
        rows, steps = np.arange(len(y)), sizes(h, y)[:, None]
        K = y.new_empty(len(y), y.shape[1], number + 1)
        K[..., 0] = f
        for s in range(1, number + 1):
            trial = y + torch.matmul(K[..., :s], B if s == number else A[s, :s]) * steps
            slope, had = rates(rows, trial)
            if not had.all():
                y, steps, K, trial, slope = of_those(had, y, steps, K, trial, slope)
                rows = rows[had]
            K[..., s] = slope
        scale = self.atol + torch.maximum(y.abs(), trial.abs()) * self.rtol
        return Attempt(rows, trial, K[..., -1].clone(), self._error(K, steps[:, 0], scale))

    def _error(self, K: Tensor, h: Tensor, scale: Tensor) -> Tensor:
        if not hasattr(self.method, "E5"):
            return root_mean(torch.matmul(K, self._on("E", K)) * h[:, None] / scale)
        five, three = ((torch.matmul(K, self._on(name, K)) / scale).square().sum(-1) for name in ("E5", "E3"))
        whole = ((five + 0.01 * three) * scale.shape[1]).sqrt()
        return torch.where(whole == 0, 0.0, h * five / whole)

    def judged(self, error: Any, plan: Plan, again: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().judged(error.cpu(), plan, again, ended)

    def memory(self, f: Tensor, h: float) -> dict[str, Any]:
        return {"h": h, "f": f, "h_abs": h}


def _norms(values: np.ndarray) -> list[float]:
    """The Euclidean norm of each row."""
    return [math.sqrt(row.dot(row)) for row in values]


def _rms(values: np.ndarray) -> list[float]:
    return [norm / values.shape[1] ** 0.5 for norm in _norms(values)]


class Proposing(Formula):
    """Formulas that remember a slope and a step; states keep their dtype and device."""

    def plan(self, t: np.ndarray, h: np.ndarray, goal: float, begun: np.ndarray, again: np.ndarray) -> Plan:
        cut = t + h * (1 + 1e-9) >= goal
        step = np.where(cut, goal - t, h)
        return Plan(step, np.where(cut, goal, t + step), h, ~(t + step > t))

    def memory(self, f: Tensor, h: float) -> dict[str, Any]:
        return {"h": h, "slope": f, "next": h}

    def remembered(self, memory: Memory) -> tuple[Any, float] | None:
        return (memory["slope"], float(memory["next"])) if "slope" in memory else None


class TorchFormula(Proposing, ExplicitFormula):
    """The adaptive methods of torchdiffeq."""

    def __init__(self, control: Control, *, name: str) -> None:
        self.name, self.control = name, control
        self._solver: Any = None

    def flat(self, states: Tensor) -> Tensor:
        if self._solver is None:
            control = self.control
            like = torch.zeros(1, dtype=states.dtype, device="cpu")
            self._solver = torchdiffeq_solver(self.name, _no_field, like, rtol=control.rtol, atol=control.atol)
            tableau = self._solver.tableau
            weights = [*tableau.beta, tableau.c_sol, tableau.c_error]
            self._weights = [part.to(states) for part in weights]
            # Whether the last stage is at the end of the step.
            self._ends = tableau.c_sol[-1] == 0 and bool((tableau.c_sol[:-1] == tableau.beta[-1]).all())
            self._exponent = float(self._solver.safety.new_tensor(self._solver.order).reciprocal())
        return states.reshape(len(states), -1)

    def first(self, rates: Rates, y: Tensor, f: Tensor, length: float) -> np.ndarray:
        solver = self._solver
        return first_step(rates, y, f, solver.atol + y.abs() * solver.rtol, 1.0 / float(solver.order), math.inf)

    @cached_property
    def tableau(self) -> Tableau:
        *stages, c_sol, c_error = (part.double().cpu().numpy() for part in self._weights)
        weights = np.zeros((len(stages), len(stages) + 1))
        for row, part in zip(weights, stages, strict=True):
            row[: len(part)] = part
        rtol, atol = float(self._solver.rtol), float(self._solver.atol)
        return Tableau(weights, None if self._ends else np.array(c_sol), np.array(c_error)[None], rtol, atol)

    @property
    def pace(self) -> Pace | None:
        solver = self._solver
        numbers = (float(getattr(solver, name)) for name in ("safety", "dfactor", "ifactor"))
        return Pace(TORCHDIFFEQ, self._exponent, *numbers) if type(self) is TorchFormula else None

    def by_stages(self, rates: Rates, rows: np.ndarray, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        solver, (*stages, c_sol, c_error) = self._solver, self._weights
        start = y
        steps = sizes(h, y)[:, None, None]
        k = y.new_empty(*y.shape, len(stages) + 1)
        k[..., 0] = f
        for s, weights in enumerate(stages, start=1):
            trial = start + torch.sum(k[..., :s] * (weights * steps), dim=-1)
            slope, had = rates(rows, trial)
            if not had.all():
                start, steps, k, trial, slope = of_those(had, start, steps, k, trial, slope)
                rows = rows[had]
            k[..., s] = slope
        if not self._ends:
            trial = start + torch.sum(k * (steps * c_sol), dim=-1)
        error = torch.sum(k * (steps * c_error), dim=-1)
        allowed = solver.atol + solver.rtol * torch.maximum(start.abs(), trial.abs())
        return Attempt(rows, trial, k[..., -1].clone(), root_mean(error / allowed))

    def judged(self, error: Any, plan: Plan, again: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        solver, error = self._solver, torch.as_tensor(error, device="cpu")
        ratio = error.to(solver.safety)
        factor = torch.maximum(
            solver.safety / _power(ratio, self._exponent),
            torch.where(error < 1, torch.ones_like(ratio), solver.dfactor),
        )
        factor = torch.where(error == 0, solver.ifactor, torch.minimum(solver.ifactor, factor))
        accepted, h = (error <= 1).numpy(), plan.h * factor.numpy()
        return accepted, np.where(accepted & ended, np.maximum(h, plan.proposed), h)


def first_step(rates: Rates, y: Tensor, f: Tensor, scale: Tensor, power: float, longest: float) -> np.ndarray:
    """The first step of each, by how a small one changes the slope, where `scale` is the tolerance (Hairer I, II.4)."""
    size, speed = root_mean(y / scale), root_mean(f / scale)
    h0 = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
    h0 = h0.clamp(max=longest)
    after, had = rates(np.arange(len(y)), y + h0[:, None] * f)
    bend = root_mean((after - f) / scale) / h0
    slow = (speed <= 1e-15) & (bend <= 1e-15)
    h1 = torch.where(slow, (h0 * 1e-3).clamp(min=1e-6), _power(0.01 / torch.maximum(speed, bend), power))
    found = torch.minimum(100 * h0, h1).clamp(max=longest).double().cpu().numpy()
    return np.where(had, found, np.nan)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Powers `(n,)` that are those of one alone: torch takes those of many numbers in another way."""
    if not base.is_cpu or base.dtype != torch.float64:
        return base**exponent
    return base.new_tensor([number**exponent for number in base.tolist()])


def of_those(had: np.ndarray, *parts: Tensor) -> Iterator[Tensor]:
    """Of each tensor the rows of members whose velocity could be had."""
    kept = torch.from_numpy(had).to(parts[0].device)
    return (part[kept] for part in parts)


def sizes(h: np.ndarray, y: Tensor) -> Tensor:
    """Sizes of steps `(n,)` where the states are; that of one is no transfer."""
    return y.new_full((1,), float(h[0])) if len(h) == 1 else torch.from_numpy(h).to(y)


def root_mean(values: Tensor) -> Tensor:
    """The root mean square of each row."""
    return values.abs().pow(2).mean(-1).sqrt()


def _no_field(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("only the tableau of this solver is used")
