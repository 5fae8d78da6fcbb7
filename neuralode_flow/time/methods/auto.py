"""The method that chooses: explicit until the problem turns out stiff, then implicit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..base import METHODS, Start, Stepper
from .ndf import NdfStepper, whole_steps
from .scipy import InterpolatingStepper
from .sundials import CvodeStepper

# LSODA holds the largest entry of its error estimate to the tolerance, others the root mean square of theirs: at equal
# tolerances it is some ten times more accurate. This factor makes it as accurate, and cheaper.
_LOCAL = 5.0

# Whole steps of NDF are taken from the start of states of so many numbers, d = 12 in logarithms, where the time to go
# is so many times that in which the fastest deviation dies out.
_MOST_WHOLE, _STIFF = 288, 200.0


class _TurnedStiff(Exception):
    """LSODA asks for a Jacobian: its own test has found that BDF would take far longer steps."""


def _no_jacobian(t: float, y: Any) -> Any:
    raise _TurnedStiff


@METHODS.register("auto")
class AutoStepper(Stepper):
    """LSODA as long as it stays with its explicit Adams formulas, from then on NDF, or CVODE's BDF.

    NDF where the flow solves Newton's systems itself (`flows.capabilities.Resolves`); from the start where it takes
    whole steps (`StepsImplicitly`) and knows how stiff it is.

    LSODA compares the step that its Adams formulas can take, bounded by accuracy and by stability (from the rate at
    which their corrector converges), with that of BDF (Petzold, SIAM J. Sci. Stat. Comput. 4, 1983). Its verdict is
    taken, but not its BDF: that needs a dense Jacobian. There is no way back: late training is contractive.
    """

    one_step = False

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._inner: Stepper
        if "stiff" in start.memory:
            self._inner, _ = _implicit(start)
        elif (stiff := _stiff_from_here(start)) is not None:
            self._inner = stiff
            self.history.append(f"stiff from t = {self.t:.6g} on: whole steps of NDF")
        else:
            control = start.control
            loose = replace(control, rtol=_LOCAL * control.rtol, atol=_LOCAL * control.atol)
            self._inner = InterpolatingStepper(
                replace(start, control=loose), name="LSODA", jac=_no_jacobian, lband=0, uband=0
            )

    def _step(self, goal: float) -> None:
        try:
            self._inner.advance(goal)
        except _TurnedStiff:
            self._switch()
            self._inner.advance(goal)
        self.t, self.state = self._inner.t, self._inner.state

    def _switch(self) -> None:
        self._inner, name = _implicit(self.here({"h": self.h}))
        self.history.append(f"stiff at t = {self.t:.6g}: from LSODA (Adams) to {name}")

    def at(self, t: float) -> Tensor:
        return self._inner.at(t)

    def memory(self) -> dict[str, Any]:
        return super().memory() | ({} if isinstance(self._inner, InterpolatingStepper) else {"stiff": True})


def _stiff_from_here(start: Start) -> NdfStepper | None:
    """NDF at once, where it takes whole steps and stability alone would ask for many steps of any explicit method."""
    steps = whole_steps(start) if start.state.numel() <= _MOST_WHOLE else None
    if steps is None or steps.fastest(start.state) * (start.end - start.t) < _STIFF:
        return None
    return NdfStepper(start, steps)


def _implicit(start: Start) -> tuple[Stepper, str]:
    if start.velocity.knows_resolvent(start.state):
        return NdfStepper(start), "NDF"
    return CvodeStepper(start, method="BDF"), "CVODE (BDF)"
