"""The errors of a run in time and in depth, measured by companions that are surely other runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checks import of_members
from ..depth.grid import more_nodes
from ..matrices import frobenius
from .base import METHODS, Control, fixed_steps, iterates, one_step
from .resolution import MARGIN, round_off
from .trajectory import Trajectory, common_times

# A method whose steps cannot be halved runs at so much smaller tolerances, as far as the dtype holds them (at 30 times
# smaller ones one in ten was off by a quarter or more). One that solves equations solves them so much better in the
# halved steps: what is left of them is no part of the order.
_TIGHTER, _SOLVED = 1000.0, 1000.0
_ROUND_OFF = 100

# The first steps of a multistep method are much the same at all tolerances: a run of no more steps is measured by a
# one-step method, whose errors may be a few tens of its tolerances.
_FEW, _ONE_STEP, _TIGHTEST = 30, "DOP853", 1e5

# Half the steps, or twice the nodes, leave at most half of the error, whatever the order; what is left of it is added
# to the gap.
_HALVED = 2.0

# The error in depth is also that of the way that W took, of which the last W does not know: up to 12 times the estimate
# (benchmarks/accuracy.py: 7.4 times). Where so much may be a part of the error, it is measured.
_WAY = 20.0

# A multistep run is off by up to this multiple of its tolerance (measured: 3.5, docs/choosing-a-solver.md), and its
# companion by that of the smaller one.
_OFF = 4.0


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
    def steps(self) -> list[float]:
        """Ends of the steps of the run, outputs among them; none where steps cannot be prescribed."""
        times = self.result.times.tolist()
        return sorted({*times, *(end for end in self.ends if end < times[-1])}) if self.halves else []

    @property
    def goals(self) -> list[float]:
        """Ends and middles of the steps of the run."""
        middles = [a + (b - a) / 2 for a, b in zip(self.steps, self.steps[1:], strict=False)]
        return sorted({*self.steps, *middles})

    @property
    def same(self) -> Control:
        """That of the run, for given steps."""
        return replace(self.main, step=None) if self.halves else self.main

    @cached_property
    def control(self) -> Control:
        """That of the companion."""
        if self.halves:
            return replace(self.same, solved=_SOLVED) if iterates(METHODS[self.method]) else self.same
        least = 1.03 * _ROUND_OFF * torch.finfo(self.result.z.dtype).eps
        smaller = _TIGHTER if self.stand_in == self.method else _TIGHTEST
        rtol = min(self.main.rtol, max(self.main.rtol / smaller, least))
        return replace(self.same, rtol=rtol, atol=self.main.atol / smaller)

    def depth_matters(self, tight: Trajectory) -> bool:
        """Whether the grid may have a part in the error, beside that in time, which the companion tells of."""
        result, n = self.result, common_times(self.result.times, tight.times)
        errors = _largest(self._errors(tight.z[:n], n))
        seen = result.depth_error[:n] > 1.01 * self._floor(n)
        return bool((seen & (_WAY * result.depth_error[:n] > errors)).any())

    def measured(self, tight: Trajectory, fine: Trajectory | None = None) -> Trajectory:
        """The trajectory of the run with its error in time, from that of the companion.

        And that in depth, from a run of the same steps on a finer grid.
        """
        known = [part for part in (tight, fine) if part is not None]
        evaluations = sum(part.stats["evaluations"] for part in known)
        result = replace(self.result, stats=self.result.stats | {"estimate_evaluations": evaluations})
        n = common_times(result.times, tight.times)
        # (T, …) over members; what the companion did not reach is not known.
        errors = torch.full_like(result.loss, torch.nan, dtype=torch.float64)
        errors[:n] = self._errors(tight.z[:n], n)
        time_error = _largest(errors)
        depth_error = result.depth_error if fine is None else self._depth_errors(fine)
        result = replace(result, time_error=time_error, depth_error=depth_error)
        sentence = None if fixed_steps(METHODS[self.method]) else self._excess(result, errors[:n])
        for part, known_as in ((tight, "time is known"), (fine, "depth is measured, and not guessed,")):
            if sentence is None and part and (reached := common_times(result.times, part.times)) < len(result.times):
                until = f"t = {float(result.times[reached - 1]):.6g}"
                sentence = f"the error in {known_as} up to {until} only: {part.status}"
        guessed = float(self.result.depth_error.max())
        if result.ending == "depth" and not guessed / 2 <= float(depth_error.max()) <= 1.1 * guessed:
            measured = f"as a finer grid measures it, by up to {float(depth_error.max()):.2g}"
            sentence = measured if sentence is None else f"{measured}; {sentence}"
        if sentence is None:
            return result
        if result.ending == "ok":
            return replace(result, status=sentence, ending="accuracy")
        return replace(result, status=f"{result.status}; {sentence}")

    def _depth_errors(self, fine: Trajectory) -> Tensor:
        """The largest so far; no less than that of the start, of which may be known what no grid sees."""
        n, errors = common_times(self.result.times, fine.times), self.result.depth_error.clone()
        gap = _largest(frobenius(fine.z[:n] - self.result.z[:n], self.result.loss.ndim).double())
        at_start = errors[0].clone()
        errors[:n] = _HALVED * gap + self._floor(n)
        return torch.maximum(errors, at_start).cummax(0).values

    def _floor(self, n: int) -> Tensor:
        """The round-off of the first n z, the largest so far, (n,)."""
        size = _largest(frobenius(self.result.z[:n], self.result.loss.ndim).double())
        return round_off(self.flow, self.result.z.dtype) * size.cummax(0).values

    def _errors(self, z: Tensor, n: int) -> Tensor:
        """Of the first n outputs, (n, …), from those of the companion."""
        axes = self.result.loss.ndim
        gap, size = (frobenius(value, axes).double() for value in (z - self.result.z[:n], self.result.z[:n]))
        floor = round_off(self.flow, self.result.z.dtype) * size
        if self.halves:
            return _HALVED * gap + floor
        off = _OFF * (self.control.atol + self.control.rtol * size) if self.stand_in == self.method else 0
        return gap + off + floor

    def _excess(self, result: Trajectory, errors: Tensor) -> str | None:
        """What is to be said of an error above the tolerance; None of one below."""
        control = self.main
        n = len(errors)
        size = frobenius(result.z[:n], result.loss.ndim).double()
        allowed = MARGIN * (control.atol + control.rtol * _largest(size))
        time_error = _largest(errors)
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
            grid = getattr(self.flow, "grid", None)
            return f"most of it is that of the depth grid; use {more_nodes(grid)}, or larger tolerances"
        return f"use smaller tolerances than rtol = {self.main.rtol:g}, atol = {self.main.atol:g}"


def _largest(values: Tensor) -> Tensor:
    """Of numbers (T, …) the largest over members, (T,)."""
    return values.reshape(len(values), -1).amax(-1)
