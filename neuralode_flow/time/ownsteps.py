"""Members of a batch that take steps of their own: those that still run are gathered, and the others cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..depth.engine.explicit import LONGEST, Legs, Tableau
from ..flows.base import jacobians, restricted
from ..flows.capabilities import runs_explicitly, steps_explicitly
from .base import FAILURES, METHODS, Start, Stepper
from .byformula import in_motion
from .endings import ENDINGS
from .formulas import Attempt, ExplicitFormula, Formula, Rates
from .watch import Watch

# What is asked of a flow, restricted to some members, at their states.
Work = Callable[[Any, Tensor], Tensor]

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

    def moved(self, rows: np.ndarray, to: Stand) -> Stand:
        """The same with some members, which rise, elsewhere."""
        if len(rows) == len(self.t):
            return to
        where = torch.from_numpy(rows).to(self.y.device)
        t, h = self.t.copy(), self.h.copy()
        t[rows], h[rows] = to.t, to.h
        return Stand(t, self.y.index_copy(0, where, to.y), self.f.index_copy(0, where, to.f), h)

    def of(self, rows: np.ndarray) -> Stand:
        """Some of them, which rise; all are given as they are."""
        if len(rows) == len(self.t):
            return self
        where = torch.from_numpy(rows).to(self.y.device)
        return Stand(self.t[rows], self.y[where], self.f[where], self.h[rows])

    def of_none(self) -> Stand:
        """None of them."""
        return Stand(self.t[:0], self.y[:0], self.f[:0], self.h[:0])

    def beside(self, other: Stand, order: np.ndarray) -> Stand:
        """With other members after these, and then in another order."""
        where = torch.from_numpy(order).to(self.y.device)
        y, f = (torch.cat(parts)[where] for parts in ((self.y, other.y), (self.f, other.f)))
        t, h = (np.concatenate(parts)[order] for parts in ((self.t, other.t), (self.h, other.h)))
        return Stand(t, y, f, h)


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
    here : Stand
        Where the members stand.
    z : Tensor or None
        The end-to-end maps there, where the steps have told those of all.
    took : ndarray
        Who took a step in the last round, rising.
    before : Stand
        Where they took it from.
    evaluations, steps : ndarray (n,)
    """

    def __init__(self, watch: Watch, start: Start, method: str, formula: Formula, members: torch.Size) -> None:
        self.watch, self.start, self.method, self.formula, self.members = watch, start, method, formula, members
        self.history: list[str] = []
        self.h = 0.0
        self.z: Tensor | None = None
        self._shape = start.state.shape[len(members) :]
        y, kept = formula.flat(start.state.reshape(-1, *self._shape)), start.memory
        if kept:
            y, f = (torch.from_numpy(np.array(kept[name])).to(y).reshape(y.shape) for name in ("y", "f"))
            t, h, begun, again, endings, evaluations, steps = (np.array(kept[name]) for name in _ARRAYS)
        else:
            n, f = len(y), torch.zeros_like(y)
            t, h, begun = np.full(n, start.t), np.full(n, np.nan), np.full(n, np.nan)
            again, endings = np.zeros(n, dtype=bool), np.full(n, _OK)
            evaluations, steps = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.here, self.begun, self.again, self._endings = Stand(t, y, f, h), begun, again, endings
        self._running = np.flatnonzero(endings == _OK)
        self.evaluations, self.steps = evaluations, steps
        self.took: np.ndarray = np.arange(0)
        self.before = self.here.of_none()

    def _begin(self, rows: np.ndarray) -> None:
        """The slopes and the first steps of members that have none."""
        here = self.here.of(rows)
        f, had = self._rates(rows)(np.arange(len(rows)), here.y)
        # A copy: the flow may put its next velocity where this one is.
        rows, here = rows[had], replace(here, f=f.clone()).of(np.flatnonzero(had))
        if len(rows):
            h = self.formula.first(self._rates(rows), here.y, here.f, self.start.end - self.start.t)
            self.here = self.here.moved(rows, replace(here, h=h))

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

    @property
    def here(self) -> Stand:
        return self._here

    @here.setter
    def here(self, stand: Stand) -> None:
        self._here, self.z = stand, None

    def running(self) -> np.ndarray:
        """Who has not ended."""
        return self._running

    def end(self, rows: np.ndarray, code: str) -> None:
        """Ends some members where they stand."""
        self._endings[rows] = _CODES.index(code)
        self._running = np.flatnonzero(self._endings == _OK)

    def take_back(self, rows: np.ndarray, code: str) -> None:
        """Ends some of those that took a step where they took it from."""
        self.here = self.here.moved(rows, self.before.of(np.searchsorted(self.took, rows)))
        self.steps[rows] -= 1
        self.end(rows, code)

    def put_back(self, rows: np.ndarray, t: float, state: Tensor, code: str) -> None:
        """Puts some members to where they were at t, as `state` of all says; those that run end there."""
        there = replace(self.here.of(rows), t=np.full(len(rows), t))
        y = self.formula.flat(state.reshape(-1, *self._shape))[torch.from_numpy(rows)]
        self.here = self.here.moved(rows, replace(there, y=y))
        self.end(np.intersect1d(rows, self.running()), code)

    def freeze(self, row: int, t: float, state: Tensor, code: str) -> None:
        """Ends a member at a point of its last step."""
        rows = np.array([row])
        there = replace(self.here.of(rows), t=np.array([t]), y=self.formula.flat(state[None]))
        self.here = self.here.moved(rows, there)
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

    def advance(self, goal: float, *, by_steps: bool = True, sign: np.ndarray | None = None) -> None:
        """Tries one step of every member that runs and is not at `goal`, or more where nobody is to look in between.

        Parameters
        ----------
        goal : float
        by_steps : bool
            Whether somebody looks at each step.
        sign : ndarray (n,), optional
            The sign of det z that is to stay: where it does not, beyond doubt, somebody looks.
        """
        rows = self.running()
        new = rows[np.isnan(self.here.h[rows]) & (self.steps[rows] == 0) & ~self.again[rows]]
        if len(new):
            self._begin(new)
            rows = self.running()
        rows = rows[self.here.t[rows] < goal]
        self.took, self.before = rows[:0], self.here.of_none()
        moved = np.zeros(len(rows), dtype=bool) if by_steps else self._runs(rows, goal, sign)
        if not moved.all():
            self._round(rows[~moved], goal)
        if len(self.took):
            self.h = float(np.min(self.here.t[self.took] - self.before.t))

    def _steps_taken(self, rows: np.ndarray, before: Stand) -> None:
        """Takes note of who took a step, and from where."""
        if not len(self.took):
            self.took, self.before = rows, before
            return
        both = np.concatenate((self.took, rows))
        order = np.argsort(both)
        self.took, self.before = both[order], self.before.beside(before, order)

    def _runs(self, rows: np.ndarray, goal: float, sign: np.ndarray | None) -> np.ndarray:
        """Steps of members that need nobody on their way to `goal`, and which of them have tried any."""
        formula, here = self.formula, self.here.of(rows)
        moved = np.zeros(len(rows), dtype=bool)
        if not len(rows) or not isinstance(formula, ExplicitFormula) or formula.pace is None:
            return moved
        states, slopes = self._states(here.y), self._states(here.f)
        flow = restricted(self.watch.grid.flow, self.members, torch.from_numpy(rows).to(here.y.device))
        if not runs_explicitly(flow, states[0]):
            return moved
        self.watch.check_seconds()
        left = min(self.watch.budget.evaluations, LONGEST) - self.evaluations[rows]
        signs = None if sign is None else sign[rows]
        legs = Legs(here.t, here.h, self.begun[rows], self.again[rows], left, goal, formula.pace, signs)
        try:
            ran = flow.explicit_runs(states, slopes, legs, formula.tableau)
        except FAILURES:  # by single steps one sees whose they are
            return moved
        if ran is None:
            return moved
        flat = formula.flat
        self.here = self.here.moved(rows, Stand(ran.t, flat(ran.y), flat(ran.f), ran.h))
        if ran.z is not None and len(rows) == len(self.here.t) and ran.took.all():
            self.z = ran.z.reshape(*self.members, *ran.z.shape[1:])
        self.begun[rows], self.again[rows] = ran.begun, ran.again
        self._spend(rows, ran.tried * len(formula.tableau.weights))
        self.steps[rows] += ran.took
        took = np.flatnonzero(ran.took)
        since = Stand(ran.since_t, flat(ran.since_y), flat(ran.since_f), ran.since_h).of(took)
        self._steps_taken(rows[took], since)
        return ran.tried > 0

    def _round(self, rows: np.ndarray, goal: float) -> None:
        """Tries one step of these members."""
        again, h = self.again[rows], self.here.h[rows]
        self.begun[rows] = np.where(again, self.begun[rows], h)
        plan = self.formula.plan(self.here.t[rows], h, goal, self.begun[rows], again)
        if plan.lost.any():
            self.end(rows[plan.lost], "underflow")
            rows, plan = rows[~plan.lost], plan.of(~plan.lost)
        here = self.here.of(rows)
        if len(rows):
            tried = self.formula.tried(self._rates(rows), here.y, here.f, plan.h)
            if len(tried.rows) < len(rows):
                rows, plan, here = rows[tried.rows], plan.of(tried.rows), here.of(tried.rows)
            accepted, h = self.formula.judged(tried.error, plan, self.again[rows], plan.end == goal)
            self.again[rows] = ~accepted
            there = Stand(plan.end, tried.y, tried.f, h)
            if not accepted.all():
                no = torch.from_numpy(~accepted).to(here.y.device)[:, None]
                there = Stand(
                    np.where(accepted, plan.end, here.t), here.y.where(no, tried.y), here.f.where(no, tried.f), h
                )
            self.here = self.here.moved(rows, there)
            rows, here = rows[accepted], replace(here, h=self.begun[rows]).of(np.flatnonzero(accepted))
            self.steps[rows] += 1
        self._steps_taken(rows, here)

    def _spend(self, rows: np.ndarray, number: Any) -> None:
        """Counts so many evaluations of each of some members; the run has had as many as the one with most."""
        self.evaluations[rows] += number
        self.watch.evaluations = max(self.watch.evaluations, int(self.evaluations[rows].max(initial=0)))

    def _rates(self, index: np.ndarray) -> Rates:
        """What is asked of the flow for these members; one that has none, or no budget for it, ends."""
        return _Asked(self, index)

    def asked(self, rows: np.ndarray, work: Work, flow: Any, y: Tensor) -> tuple[Tensor, np.ndarray]:
        """work(flow, states) of some members and who has it; the others end."""
        self._spend(rows, 1)
        which, had = torch.from_numpy(rows).to(y.device), np.ones(len(rows), dtype=bool)
        # Velocities are asked for at trial states, derivatives where the members stand.
        good = None if work is jacobians else lambda: self._states(self.here.y[which])
        values, endings = self.watch.each(self.t, work, flow, self._states(y), good)
        for place, ending in endings.items():
            had[place] = False
            self.end(rows[place : place + 1], ending)
        return values, had

    def stepped(
        self, rows: np.ndarray, flow: Any, y: Tensor, f: Tensor, h: np.ndarray, tableau: Tableau
    ) -> Attempt | None:
        """Whole steps of some members, of those that the flow can take; None where it takes none."""
        states, stages = self._states(y), len(tableau.weights)
        if not steps_explicitly(flow, states[0]):
            return None
        self.watch.check_seconds()
        try:
            tried = flow.explicit_steps(states, self._states(f), h, tableau)
        except FAILURES:
            return None if len(rows) == 1 else self._stepped_singly(rows, y, f, h, tableau)
        if tried is None:
            return None
        done = np.flatnonzero(~np.isnan(tried.error))
        self._spend(rows[done], stages)
        flat = self.formula.flat
        return Attempt(np.arange(len(rows)), flat(tried.ahead), flat(tried.slope), tried.error).of(done)

    def _stepped_singly(
        self, rows: np.ndarray, y: Tensor, f: Tensor, h: np.ndarray, tableau: Tableau
    ) -> Attempt | None:
        """Whole steps one by one, of those members that have any."""
        found: Attempt | None = None
        for i in range(len(rows)):
            one, which = slice(i, i + 1), torch.from_numpy(rows[i : i + 1])
            flow = restricted(self.watch.grid.flow, self.members, which)
            attempt = self.stepped(rows[one], flow, y[one], f[one], h[one], tableau)
            if attempt is not None and len(attempt.rows):
                attempt = attempt._replace(rows=attempt.rows + i)
                found = attempt if found is None else found.beside(attempt)
        return found

    def alone(self, row: int, velocity: Watch) -> Alone:
        """A member in the step that it took, as the method alone would have taken it."""
        before, here = self.before.of(np.searchsorted(self.took, [row])), self.here.of(np.array([row]))
        memory = self.formula.memory(before.f[0], float(before.h[0]))
        start = Start(
            velocity, float(before.t[0]), self._states(before.y)[0], self.start.end, self.start.control, memory
        )
        slopes = self._states(before.f)[0], self._states(here.f)[0]
        return Alone(start, self.method, float(here.t[0]), self._states(here.y)[0], slopes)

    def part(self, s: float, watches: Callable[[int], Watch]) -> Tensor:
        """The states of all, of those that took a step at the part s in [0, 1] of it."""
        if s == 1:
            return self.state
        states = self._states(self.here.y).clone()
        for row, before in zip(self.took.tolist(), self.before.t.tolist(), strict=True):
            after = float(self.here.t[row])
            if before < after:
                states[row] = self.alone(row, watches(row)).at(before + s * (after - before))
        return states.reshape(self.start.state.shape)


class _Asked:
    """See Rates: for some members, who only become fewer."""

    def __init__(self, own: OwnSteps, index: np.ndarray) -> None:
        self.own, self.index, self.most = own, index, own.watch.budget.evaluations
        self.held: tuple[np.ndarray, Any] = (np.arange(0), None)  # the flow of these

    def __call__(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        values, had = self._asked(rows, velocities, y)
        return self.own.formula.flat(values) if len(rows) else y, had

    def jacobians(self, rows: np.ndarray, y: Tensor) -> tuple[Tensor, np.ndarray]:
        return self._asked(rows, jacobians, y)

    def explicit_steps(self, y: Tensor, f: Tensor, h: np.ndarray, tableau: Tableau) -> Attempt | None:
        own = self.own
        able = np.flatnonzero(own.evaluations[self.index] + len(tableau.weights) <= self.most)
        if not len(able):
            return None
        rows = self.index[able]
        if len(able) < len(y):
            which = torch.from_numpy(able)
            y, f, h = y[which], f[which], h[able]
        tried = own.stepped(rows, self._flow(rows, y), y, f, h, tableau)
        return tried and tried._replace(rows=able[tried.rows])

    def _flow(self, chosen: np.ndarray, y: Tensor) -> Any:
        """That of these members."""
        if not np.array_equal(self.held[0], chosen):
            which = torch.from_numpy(chosen).to(y.device)
            self.held = chosen, restricted(self.own.watch.grid.flow, self.own.members, which)
        return self.held[1]

    def _asked(self, rows: np.ndarray, work: Work, y: Tensor) -> tuple[Tensor, np.ndarray]:
        own, chosen = self.own, self.index[rows]
        able = own.evaluations[chosen] < self.most
        if not able.all():
            own.end(chosen[~able], "evaluations")
        if not able.any():
            return y, able
        if able.all():
            return own.asked(chosen, work, self._flow(chosen, y), y)
        kept = torch.from_numpy(able).to(y.device)
        some, had = self._asked(rows[able], work, y[kept])
        values = some.new_zeros(len(rows), *some.shape[1:])
        values[kept], able[able] = some, had
        return values, able


def velocities(flow: Any, states: Tensor) -> Tensor:
    """Those of some members, as one asks for their derivatives."""
    found: Tensor = flow.velocity(states)
    return found


class Alone(Stepper):
    """A method after one step that is known; inside it is what the method says when it repeats that step."""

    def __init__(self, start: Start, method: str, t: float, state: Tensor, slopes: tuple[Tensor, Tensor]) -> None:
        super().__init__(start)
        self.since, self.t, self.state = start.t, t, state
        self._method, self._ends = method, slopes

    def _step(self, goal: float) -> None:
        raise NotImplementedError("this step has been taken")

    def _slopes(self) -> tuple[Tensor, Tensor]:
        return self._ends

    def _again(self, start: Start) -> Stepper:
        return in_motion(METHODS[self._method], start)
