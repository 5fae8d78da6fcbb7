"""The watch kept over the velocity while a method runs: budgets, finite numbers, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..checks import all_finite, of_members
from ..depth.engine.explicit import Tableau, Tried
from ..depth.engine.polar import Formulas, NdfSteps, Place
from ..flows.base import jacobian, lends_velocity, restricted
from ..flows.capabilities import (
    KnowsJacobian,
    Linearises,
    Resolves,
    StepsImplicitly,
    itself_offers,
    offers,
    replayed,
    steps_explicitly,
)
from .base import FAILURES, Control
from .endings import Stopped, UsedUp
from .members import advice, culprits, not_finite
from .resolution import FixedGrid

# With one time asked for more often than this the step size has shrunk to nothing: torchdiffeq guards that by `assert`
# only, which `python -O` removes. The stages of a step are far fewer; an implicit method asks once per entry of the
# state for each Jacobian.
_STAGNATION = 1000
_JACOBIANS = 20

_EPS = sys.float_info.epsilon


D = TypeVar("D")


class Budget(NamedTuple):
    """What a run may spend: velocity evaluations, and seconds of wall time."""

    evaluations: int
    seconds: float | None = None


class Spent(NamedTuple):
    """What a run had spent before it was taken up: velocity evaluations, Jacobian–vector products, seconds."""

    evaluations: int = 0
    products: int = 0
    seconds: float = 0.0


class Watch:
    """Counts velocity evaluations and stops a run that leaves the finite numbers, its budgets, or the spot.

    Parameters
    ----------
    grid : FixedGrid
        It has the flow.
    members : torch.Size
        The leading axes of a batch.
    good : Tensor
        A state at which the velocity can be computed, or so it is hoped.
    budget : Budget
    spent : Spent

    Attributes
    ----------
    evaluations, products : int
        Velocity evaluations and Jacobian–vector products so far.
    """

    def __init__(self, grid: FixedGrid, members: torch.Size, good: Tensor, budget: Budget, spent: Spent) -> None:
        self.grid = grid
        self.members = members
        self.good = good
        self.budget = budget
        self._lent = lends_velocity(grid.flow)
        self.evaluations, self.products = spent.evaluations, spent.products
        self._started = time.perf_counter() - spent.seconds
        self._derivable: Tensor | None = None  # a state at which the derivative could be taken
        self._last = float("-inf")
        self._stuck = 0

    @property
    def seconds(self) -> float:
        """Wall time of the run, also before it was resumed."""
        return time.perf_counter() - self._started

    def __call__(self, t: float, state: Tensor) -> Tensor:
        self._spend()
        self.evaluations += 1
        if abs(t - self._last) > 8 * _EPS * abs(t):
            self._stuck, self._last = 0, t
        self._stuck += 1
        if self._stuck > _STAGNATION + _JACOBIANS * state.numel():
            raise Stopped("underflow", f"the step size underflowed at t = {t:.6g}: the tolerance cannot be met there")
        found = self._computed(t, replayed(self.grid.flow), state)
        return found.clone() if self._lent else found

    def each(
        self,
        t: float,
        work: Callable[[Any, Tensor], Tensor],
        flow: Any,
        states: Tensor,
        good: Callable[[], Tensor] | None,
    ) -> tuple[Tensor, dict[int, str]]:
        """work(flow, states) of some members `(n, ...)`, such as velocities, and how those end that have none.

        `flow` is theirs, `restricted` to them; `good` makes states `(n, ...)` at which it can be computed, and without
        it members are tried one by one; endings are by their places.
        """
        self.check_seconds()
        try:
            value = work(flow, states)
        except FAILURES:
            n = len(states)
            if good is None:
                bad = torch.tensor([_fails(work, flow, states, i) for i in range(n)], device="cpu")
            else:
                bad = culprits(partial(work, flow), FAILURES, states, good(), states.shape[:1])
            rest = (~bad).nonzero()[:, 0]
            if not bool(bad.any()) or not len(rest):
                return torch.zeros_like(states), dict.fromkeys(range(n), "velocity")
            fewer = restricted(flow, (n,), rest)
            found, endings = self.each(t, work, fewer, states[rest], good and (lambda: good()[rest]))
            value = found.new_zeros(n, *found.shape[1:])
            value[rest] = found
            places = rest.tolist()
            lost = {int(i): "velocity" for i in bad.nonzero()[:, 0]}
            return value, lost | {places[i]: ending for i, ending in endings.items()}
        if all_finite(value):
            return value, {}
        places = not_finite(value, states.shape[:1]).nonzero()[:, 0].tolist()
        return value, dict.fromkeys(places, "not_finite")

    def knows_steps(self, state: Tensor) -> bool:
        """See Velocity."""
        return steps_explicitly(self.grid.flow, state)

    def explicit_steps(self, t: float, state: Tensor, slope: Tensor, h: Any, tableau: Tableau) -> Tried | None:
        """See Velocity; what the budget has no place for, or fails, is left to the stages, which tell of it."""
        stages = len(tableau.weights)
        if self.evaluations + stages > self.budget.evaluations or not self.knows_steps(state):
            return None
        self.check_seconds()
        try:
            tried = self.grid.flow.explicit_steps(state, slope, h, tableau)
        except FAILURES:
            return None
        if tried is None or np.isnan(tried.error).any():
            return None
        self.evaluations += stages
        return tried

    def linearised(self, t: float, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """See Velocity; every product counts as one evaluation, which it costs."""
        flow = self.grid.flow
        derivative = self._derived(t, flow.linearised, state) if offers(flow, Linearises) else None
        if derivative is None:
            return None

        def product(direction: Tensor) -> Tensor:
            self._spend()
            self.evaluations += 1
            self.products += 1
            value = self._derived(t, lambda _: derivative(direction), state, lambda at: flow.linearised(at)(direction))
            if not all_finite(value):
                raise self._endless(t, not_finite(value, self.members))
            self._derivable = state
            return value

        return product

    def knows_jacobian(self, state: Tensor) -> bool:
        """See Velocity."""
        return offers(self.grid.flow, KnowsJacobian) and self.grid.flow.knows_jacobian(state)

    def jacobian(self, t: float, state: Tensor) -> Tensor:
        """See Velocity; it counts as one product, and costs about twenty velocities where the flow knows it."""
        self._spend()
        self.evaluations += 1
        self.products += 1
        flow = self.grid.flow
        known = flow.jacobian if self.knows_jacobian(state) else partial(jacobian, flow)
        found: Tensor = self._derived(t, known, state)
        if not all_finite(found):
            raise self._endless(t, not_finite(_of_each(found, state, self.members), self.members))
        self._derivable = state
        return found

    def knows_resolvent(self, state: Tensor) -> bool:
        """See Velocity."""
        return offers(self.grid.flow, Resolves) and self.grid.flow.knows_resolvent(state)

    def resolvent(self, t: float, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """See Velocity; it counts as one product, as a Jacobian does."""
        self._spend()
        self.evaluations += 1
        self.products += 1
        found = self._derived(t, self.grid.flow.resolvent, state)
        self._derivable = state
        return found

    def _derived(
        self, t: float, work: Callable[[Tensor], D], state: Tensor, again: Callable[[Tensor], object] | None = None
    ) -> D:
        """work(state), which takes the derivative of the velocity there; `again` does so at other states."""
        try:
            return work(state)
        except FAILURES as error:
            which = culprits(again or work, FAILURES, state, self._derivable, self.members)
            raise Stopped(
                "velocity",
                f"the velocity{of_members(which)} could not be linearised at t = {t:.6g}: {error}{advice(which)}",
            ) from error

    @staticmethod
    def _endless(t: float, which: Tensor) -> Stopped:
        return Stopped(
            "not_finite",
            f"the derivative of the velocity{of_members(which)} is not finite at t = {t:.6g}{advice(which)}",
        )

    def implicit_steps(self, state: Tensor, formulas: Formulas) -> NdfSteps | None:
        """See Velocity."""
        flow = self.grid.flow
        return flow.implicit_steps(state, formulas) if itself_offers(flow, StepsImplicitly) else None

    def implicit_step(self, steps: NdfSteps, here: Place, end: float) -> Place | None:
        """See Velocity; what the budget has no place for, or fails, is left to velocities, which tell of it."""
        self.check_seconds()
        ahead = steps.step(here, end, self.budget.evaluations - self.evaluations)
        if ahead is not None:
            self.evaluations += steps.evaluations
            self.products += steps.products
        return ahead

    def slowest(self, t: float, state: Tensor, control: Control) -> str:
        """Which member of a batch a step size that vanished, or an iteration that failed, is likely due to."""
        if not self.members or state.shape[: len(self.members)] != self.members:
            return ""
        try:
            velocity = self.grid.flow.velocity(state)
        except FAILURES:
            return ""
        rate = (velocity.abs() / (control.atol + control.rtol * state.abs())).reshape(*self.members, -1).amax(-1)
        which = rate == rate.max()
        name = of_members(which).removeprefix(" of ")
        return f"; at t = {t:.6g} {name} moves fastest{advice(which)}" if name else ""

    def _spend(self) -> None:
        most = self.budget.evaluations
        if self.evaluations >= most:
            raise UsedUp("evaluations", f"the budget of {most} velocity evaluations")
        self.check_seconds()

    def check_seconds(self) -> None:
        """Raises Stopped where the budget of wall time is used up."""
        seconds = self.budget.seconds
        if seconds is not None and self.seconds > seconds:
            raise UsedUp("seconds", "the budget of wall time", f", after {self.seconds:.3g} seconds")

    def _computed(self, t: float, work: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        try:
            value = work(argument)
        except FAILURES as error:
            which = culprits(work, FAILURES, argument, self.good, self.members)
            raise Stopped(
                "velocity",
                f"the velocity{of_members(which)} could not be computed at t = {t:.6g}: {error}{advice(which)}",
            ) from error
        if not all_finite(value):
            which = not_finite(value, self.members)
            raise Stopped(
                "not_finite",
                f"the velocity{of_members(which)} is not finite at t = {t:.6g}: the flow blew up, or its step was too "
                f"large{advice(which)}",
            )
        return value


def _of_each(J: Tensor, state: Tensor, members: torch.Size) -> Tensor:
    """The blocks of a derivative `(N, N)` that are those of members in their own states, `(*members, ...)`."""
    if state.shape[: len(members)] != members:
        return J
    n = members.numel()
    return J.reshape(n, -1, n, len(J) // n).diagonal(dim1=0, dim2=2).movedim(-1, 0).reshape(*members, -1)


def _fails(work: Callable[[Any, Tensor], Tensor], flow: Any, states: Tensor, i: int) -> bool:
    """Whether there is nothing to be had of one member alone."""
    try:
        work(restricted(flow, states.shape[:1], torch.tensor([i], device=states.device)), states[i : i + 1])
    except FAILURES:
        return True
    return False
