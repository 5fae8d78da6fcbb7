"""Runge–Kutta in two registers: beside the state at the start of a step no more than a state and an increment."""

from __future__ import annotations

from torch import Tensor

from ..base import METHODS, FixedStepper

# The method of five stages and order 4 of Carpenter and Kennedy, NASA TM-109112 (1994), in Williamson's form.
_A = (
    0.0,
    -567301805773 / 1357537059087,
    -2404267990393 / 2016746695238,
    -3550918686646 / 2091501179385,
    -1275806237668 / 842570457699,
)
_B = (
    1432997174477 / 9575080441755,
    5161836677717 / 13612068292357,
    1720146321549 / 2090206949498,
    3134564353537 / 4481467310338,
    2277821191437 / 14882151754819,
)
_C = (
    0.0,
    1432997174477 / 9575080441755,
    2526269341429 / 6820363962896,
    2006345519317 / 3224310063776,
    2802321613138 / 2924317926251,
)


@METHODS.register("carpenter_kennedy")
class CarpenterKennedy(FixedStepper):
    """δ ← A_i δ + h v(t + C_i h, y), y ← y + B_i δ for i = 1 … 5: order 4, in two registers (Williamson 1980)."""

    def _fixed_step(self, start: float, end: float) -> Tensor:
        h = end - start
        # The first stage makes the registers, which are this step's own; the velocity and the state are not.
        increment = h * self.velocity(start, self.state)
        state = self.state.add(increment, alpha=_B[0])
        for a, b, c in zip(_A[1:], _B[1:], _C[1:], strict=True):
            increment.mul_(a).add_(self.velocity(start + c * h, state), alpha=h)
            state.add_(increment, alpha=b)
        return state
