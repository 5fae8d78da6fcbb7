"""Members of a batch that take steps of their own: those that still run are gathered, and the others cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import METHODS, Memory, Start, Stepper
from .endings import ENDINGS
from .formulas import Formula, Rates
from .watch import Watch

_CODES = tuple(ENDINGS)
_OK = _CODES.index("ok")

# What of a member is remembered, `(n,)` each.
_ARRAYS = ("t", "h", "begun", "again", "endings", "evaluations", "steps")


@dataclass(frozen=True, eq=False)
class Stand:
    """Where members stand: times `(n,)`, states and slopes `(n, N)`, and what was proposed for the next step `(n,)`."""

    t: np.ndarray
    y: Tensor
    f: Tensor
    h: np.ndarray

    def moved(self, rows: np.ndarray, t: Any, y: Tensor, f: Tensor, h: Any) -> Stand:
        """The same with some members elsewhere."""
        where = torch.from_numpy(rows).to(self.y.device)
        times, steps = self.t.copy(), self.h.copy()
        times[rows], steps[rows] = t, h
        return Stand(times, self.y.index_copy(0, where, y), self.f.index_copy(0, where, f), steps)

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor, np.ndarray]:
        """Some of them."""
        where = torch.from_numpy(rows).to(self.y.device)
        return self.t[rows], self.y[where], self.f[where], self.h[rows]


class OwnSteps:
    """A method in motion for all members of a batch, each at a time of its own until the next output.

    It stands for a `Stepper` in a run, one round for a step: every member that runs tries a step.

    Parameters
    ----------
    watch : Watch
    start : Start
    method : str
    formula : Formula
        That of the method.
    members : torch.Size
        The shape of the batch; its members are counted in one line, n of them.

    Attributes
    ----------
    t : float
        The earliest time of those that run, the latest of all where none does.
    state : Tensor
        The states of all, each at its own time.
    here, before : Stand
        Where the members stand, and where their last steps began.
    evaluations, steps : ndarray (n,)
    """

    def __init__(self, watch: Watch, start: Start, method: str, formula: Formula, members: torch.Size) -> None:
        self.watch, self.start, self.method, self.formula, self.members = watch, start, method, formula, members
        self.history: list[str] = []
        self.h = 0.0
        self._shape = start.state.shape[len(members) :]
        y = formula.flat(start.state.reshape(-1, *self._shape))
        if "endings" in start.memory:
            self._take_up(start.memory, y)
        else:
            self._begin(y)
        self.before = self.here

    def _begin(self, y: Tensor) -> None:
        n, start = len(y), self.start
        self._endings, self.again = np.full(n, _OK), np.zeros(n, dtype=bool)
        self.evaluations, self.steps = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        nothing = np.full(n, np.nan)
        self.here = Stand(np.full(n, start.t), y, torch.zeros_like(y), nothing)
        self.begun = nothing
        f, _ = self._rates(np.arange(n))(np.arange(n), y)
        self.here = replace(self.here, f=f)
        rows = self.running()
        if len(rows):
            h = self.formula.first(self._rates(rows), *self.here.at(rows)[1:3], start.end - start.t)
            self.here = self.here.moved(rows, start.t, *self.here.at(rows)[1:3], h)

    def _take_up(self, memory: Memory, y: Tensor) -> None:
        kept = {name: np.array(memory[name]) for name in _ARRAYS}
        states, slopes = (torch.as_tensor(np.array(memory[name])).to(y).reshape(y.shape) for name in ("y", "f"))
        self.here = Stand(kept["t"], states, slopes, kept["h"])
        self.begun, self.again, self._endings = kept["begun"], kept["again"], kept["endings"]
        self.evaluations, self.steps = kept["evaluations"], kept["steps"]

    def memory(self) -> dict[str, Any]:
        """What lets it go on to the bit."""
        here = self.here
        return {
            "t": here.t,
            "y": here.y.cpu().numpy(),
            "f": here.f.cpu().numpy(),
            "h": here.h,
            "begun": self.begun.copy(),
            "again": self.again.copy(),
            "endings": self._endings.copy(),
            "evaluations": self.evaluations.copy(),
            "steps": self.steps.copy(),
        }

    @property
    def endings(self) -> list[str]:
        """How each member has ended, a key of ENDINGS; "ok" as long as it runs."""
        return [_CODES[i] for i in self._endings]

    def running(self) -> np.ndarray:
        """Who has not ended."""
        return np.flatnonzero(self._endings == _OK)

    def end(self, rows: np.ndarray, code: str) -> None:
        """Ends some members where they stand."""
        self._endings[rows] = _CODES.index(code)

    def take_back(self, rows: np.ndarray, code: str) -> None:
        """Ends some members where their last step began."""
        self.here = self.here.moved(rows, *self.before.at(rows))
        self.end(rows, code)

    def freeze(self, row: int, t: float, state: Tensor, code: str) -> None:
        """Ends a member at a point of its last step."""
        rows = np.array([row])
        _, _, f, h = self.here.at(rows)
        self.here = self.here.moved(rows, t, self.formula.flat(state[None]), f, h)
        self.end(rows, code)

    @property
    def t(self) -> float:
        rows = self.running()
        return float(self.here.t[rows].min() if len(rows) else self.here.t.max())

    @property
    def state(self) -> Tensor:
        return self._states(self.here.y).reshape(self.start.state.shape)

    def at(self, t: float) -> Tensor:
        """The state, at a time that all have come to."""
        return self.state

    def _states(self, y: Tensor) -> Tensor:
        return y.to(self.start.state).reshape(len(y), *self._shape)

    def advance(self, goal: float) -> np.ndarray:
        """Tries one step of every member that runs and is not at `goal`; those that took it."""
        rows = self.running()
        rows = rows[self.here.t[rows] < goal]
        t, _, _, h = self.here.at(rows)
        self.begun = self.begun.copy()
        self.begun[rows] = np.where(self.again[rows], self.begun[rows], h)
        plan = self.formula.plan(t, h, goal, self.begun[rows], self.again[rows])
        self.end(rows[plan.lost], "underflow")
        plan, rows = type(plan)(*(part[~plan.lost] for part in plan)), rows[~plan.lost]
        if not len(rows):
            return rows
        _, y, f, _ = self.here.at(rows)
        tried = self.formula.tried(self._rates(rows), y, f, plan.h)
        plan, rows = type(plan)(*(part[tried.rows] for part in plan)), rows[tried.rows]
        accepted, h = self.formula.judged(tried.error, plan, self.again[rows], plan.end == goal)
        self.again[rows] = ~accepted
        _, y, f, _ = self.here.at(rows)
        self.here = self.here.moved(rows, self.here.t[rows], y, f, h)
        took = rows[accepted]
        if len(took):
            where = torch.from_numpy(np.flatnonzero(accepted)).to(y.device)
            old = self.here.at(took)
            self.before = self.before.moved(took, *old[:3], self.begun[took])
            self.here = self.here.moved(took, plan.end[accepted], tried.y[where], tried.f[where], h[accepted])
            self.steps[took] += 1
            self.h = float((plan.h[accepted]).min())
        return took

    def _rates(self, index: np.ndarray) -> Rates:
        """The velocities of these members; one that has none, or no budget for it, ends."""

        def rates(rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
            chosen = index[rows]
            had = self.evaluations[chosen] < self.watch.budget.evaluations
            self.end(chosen[~had], "evaluations")
            self.evaluations[chosen[had]] += 1
            self.watch.evaluations = int(self.evaluations.max())
            found = torch.zeros_like(y)
            if had.any():
                asked = np.flatnonzero(had)
                which, where = torch.from_numpy(chosen[asked]), torch.from_numpy(asked).to(y.device)
                good = self._states(self.here.y[which.to(y.device)])
                values, endings = self.watch.each(self.t, which, self._states(y[where]), good)
                found[where] = self.formula.flat(values)
                for i, ending in zip(asked, endings, strict=True):
                    if ending != "ok":
                        had[i] = False
                        self.end(chosen[i : i + 1], ending)
            return found, had

        return rates

    def alone(self, row: int, velocity: Watch) -> Alone:
        """A member in its last step, as the method alone would have taken it."""
        rows = np.array([row])
        t, y, f, h = self.before.at(rows)
        start = Start(
            velocity,
            float(t[0]),
            self._states(y)[0],
            self.start.end,
            self.start.control,
            self.formula.memory(f[0], float(h[0])),
        )
        t, y, last, _ = self.here.at(rows)
        slopes = self._states(f)[0], self._states(last)[0]
        return Alone(start, self.method, float(t[0]), self._states(y)[0], slopes)

    def part(self, s: float, watches: Callable[[int], Watch]) -> Tensor:
        """The states of all at the same part s in [0, 1] of their last steps."""
        if s == 1:
            return self.state
        states = self._states(self.here.y).clone()
        for row in range(len(states)):
            before, after = float(self.before.t[row]), float(self.here.t[row])
            if before < after:
                states[row] = self.alone(row, watches(row)).at(before + s * (after - before))
        return states.reshape(self.start.state.shape)


class Alone(Stepper):
    """A method after one step that is known; inside it is what the method says when it repeats that step."""

    def __init__(self, start: Start, method: str, t: float, state: Tensor, slopes: tuple[Tensor, Tensor]) -> None:
        super().__init__(start)
        self.t, self.state = t, state
        self._method, self._ends = method, slopes

    def _step(self, goal: float) -> None:
        raise NotImplementedError("this step has been taken")

    def _slopes(self) -> tuple[Tensor, Tensor]:
        return self._ends

    def _again(self, start: Start) -> Stepper:
        return METHODS[self._method](start)
