"""The error in time, measured by a companion run that is surely another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..matrices import frobenius
from .base import METHODS, Control, fixed_steps, iterates, one_step
from .members import of_members
from .resolution import MARGIN, round_off
from .trajectory import Trajectory, common_times

# A method whose steps cannot be halved, or are solved to the tolerances, runs at that much smaller ones, as far as the
# dtype holds them.
_TIGHTER = 30.0
_ROUND_OFF = 100

# The first steps of a multistep method are much the same at all tolerances: a run of no more steps is measured by a
# one-step method.
_FEW, _ONE_STEP = 30, "DOP853"

# Half the steps leave at most half of the error, whatever the order; what is left of it is added to the gap.
_HALVED = 2.0

# Where tolerances cannot be made this much smaller the companion is no better than the run, and both are off by up to
# this multiple of the tolerance (measured: 3.5, docs/choosing-a-solver.md).
_WORTH, _OFF = 2.0, 4.0


@dataclass(frozen=True, eq=False)
class Companion:
    """How a run is measured: by the same method with every step halved, or, of multistep methods, at small tolerances.

    Smaller tolerances alone change nothing where steps end on output times that lie closer than they would go; nor in
    the first steps of a multistep method, for which another method stands in.

    Parameters
    ----------
    flow : Flow
        With the round-off of its z.
    method : str
    main : Control
        Method and control of the run.
    result : Trajectory
    ends : list of float
        When the steps of the run ended; the last one may lie beyond the end of the run, at an event.
    """

    flow: Any
    method: str
    main: Control
    result: Trajectory
    ends: list[float]

    @property
    def halves(self) -> bool:
        """Whether the steps of the method can be halved."""
        return one_step(METHODS[self.method])

    @property
    def stand_in(self) -> str:
        """The method of the companion."""
        return _ONE_STEP if not self.halves and len(self.ends) <= _FEW else self.method

    @property
    def goals(self) -> list[float]:
        """Ends and middles of the steps of the run."""
        if not self.halves:
            return []
        times = self.result.times.tolist()
        ends = sorted({*times, *(end for end in self.ends if end < times[-1])})
        middles = [a + (b - a) / 2 for a, b in zip(ends, ends[1:], strict=False)]
        return sorted({*ends, *middles})

    @cached_property
    def control(self) -> Control:
        """That of the companion."""
        halved = replace(self.main, step=None) if self.halves else self.main
        if self.halves and not iterates(METHODS[self.method]):
            return halved
        least = 1.03 * _ROUND_OFF * torch.finfo(self.result.z.dtype).eps
        rtol = min(self.main.rtol, max(self.main.rtol / _TIGHTER, least))
        return replace(halved, rtol=rtol, atol=self.main.atol / _TIGHTER)

    def measured(self, tight: Trajectory) -> Trajectory:
        """The trajectory of the run with its error in time, from that of the companion."""
        result = self.result
        stats = result.stats | {"estimate_evaluations": tight.stats["evaluations"]}
        n = common_times(result.times, tight.times)
        # (T, …) over members; what the companion did not reach is not known.
        errors = torch.full_like(result.loss, torch.nan, dtype=torch.float64)
        errors[:n] = self._errors(tight.z[:n], n)
        time_error = errors.reshape(len(errors), -1).amax(-1)
        result = replace(result, stats=stats, time_error=time_error)
        sentence = None if fixed_steps(METHODS[self.method]) else self._excess(errors[:n])
        if sentence is None and n < len(result.times):
            sentence = f"the error in time is known up to t = {float(result.times[n - 1]):.6g} only: {tight.status}"
        if sentence is None:
            return result
        if result.ending == "ok":
            return replace(result, status=sentence, ending="accuracy")
        return replace(result, status=f"{result.status}; {sentence}")

    def _errors(self, z: Tensor, n: int) -> Tensor:
        """Of the first n outputs, (n, …), from those of the companion."""
        axes = self.result.loss.ndim
        gap, size = (frobenius(value, axes).double() for value in (z - self.result.z[:n], self.result.z[:n]))
        floor = round_off(self.flow, self.result.z.dtype) * size
        if self.halves:
            return _HALVED * gap + floor
        worth = self.main.rtol / self.control.rtol
        if worth < _WORTH and self.stand_in == self.method:
            return gap + _OFF * (self.main.atol + self.main.rtol * size)
        return gap / (1 - 1 / max(worth, _WORTH)) + floor

    def _excess(self, errors: Tensor) -> str | None:
        """What is to be said of an error above the tolerance; None of one below."""
        result, control = self.result, self.main
        n = len(errors)
        size = frobenius(result.z[:n], result.loss.ndim).double()
        allowed = MARGIN * (control.atol + control.rtol * size.reshape(n, -1).amax(-1))
        time_error = errors.reshape(n, -1).amax(-1)
        told = result.ending == "depth"  # then the status speaks of the grid, and that of the steps is looked at alone
        excess = (time_error + (0 if told else result.depth_error[:n])) / allowed
        worst = int(excess.argmax())
        if float(excess[worst]) <= 1:
            return None
        time, depth = float(time_error[worst]), float(result.depth_error[worst])
        which = of_members(errors[worst] == errors[worst].max())
        advice = self._advice(time, 0.0 if told else depth, float(size[worst].max()))
        return (
            f"the error of z{which} was measured as {time + depth:.2g} at t = {float(result.times[worst]):.6g} "
            f"(time {time:.2g}, depth {depth:.2g}), more than ten times the tolerance: {advice}"
        )

    def _advice(self, time: float, depth: float, size: float) -> str:
        """What makes the larger of the errors in time and in depth smaller."""
        dtype = self.result.z.dtype
        if round_off(self.flow, dtype) * size > max(time, depth) / 2:
            better = "larger tolerances" if dtype == torch.float64 else "float64"
            return f"most of it is round-off of {dtype} in the product z; use {better}, or fewer layers"
        if depth > time:
            return "most of it is that of the depth grid; use more nodes, or larger tolerances"
        return f"use smaller tolerances than rtol = {self.main.rtol:g}, atol = {self.main.atol:g}"
