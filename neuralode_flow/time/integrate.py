"""The one verb: move any flow through training time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import count, float_tensor, positive
from ..flows.base import Flow
from ..laws import drift
from .base import FAILURES, METHODS, Control, Stopped, Watch
from .trajectory import Trajectory


def integrate(
    flow: Flow,
    state: Tensor,
    times: Tensor | Sequence[float],
    method: str = "dopri5",
    rtol: float = 1e-8,
    atol: float = 1e-10,
    *,
    step: float | None = None,
    max_evaluations: int = 1_000_000,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Trajectory:
    """Integrates a training flow.

    Parameters
    ----------
    flow : Flow
        `ContinuousFlow`, `FiniteFlow`, `IntrinsicFlow`, or anything with velocity, product, law, check and loss.
    state : Tensor
        Initial state, with any leading batch axes. Members of a batch share the step size; the tolerance is met in the
        root mean square over all entries, so for error control of its own run a member alone.
    times : Tensor (T,) or sequence of floats
        Output times, increasing; the first is the time of `state`.
    method : str
        Adaptive: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun (torchdiffeq), RK23, RK45, DOP853, Radau, BDF, LSODA
        (SciPy). Fixed steps: euler, midpoint, heun2, heun3, rk4 (the 3/8 rule), explicit_adams, implicit_adams
        (torchdiffeq), implicit_midpoint.
    rtol, atol : float
        Tolerances of adaptive methods. Tolerances below 100 ε of the state's dtype are raised to it, with a warning.
    step : float, optional
        Step size of fixed-step methods; by default one step per output interval.
    max_evaluations : int
        Budget of velocity evaluations in the whole run.
    observe : callable, optional
        Called as observe(i, state) at every output time i = 0, 1, … in turn.

    Returns
    -------
    Trajectory
        When the run stops early it holds what was reached, and `status` says why.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, before any work is done.
    """
    solver = METHODS[method]
    points = _check_times(times)
    flow.check(state)
    control = _check_control(rtol, atol, step, state.dtype)
    watch = Watch(flow.velocity, count("max_evaluations", max_evaluations))
    if control.step is not None and (points[-1] - points[0]) / control.step > max_evaluations:
        raise ValueError(
            f"step = {step:g} takes more steps than max_evaluations = {max_evaluations}: raise one of them"
        )
    state = state.detach()
    with torch.no_grad():
        start = flow.law(state)
        records: list[tuple[Tensor, Tensor, Tensor]] = []

        def record(reached: Tensor) -> None:
            entry = _evaluate(flow, reached, start, points[len(records)])
            records.append(entry)
            if observe is not None:
                observe(len(records) - 1, reached)

        try:
            record(state)
        except Stopped as stop:
            raise ValueError(f"state cannot be a start of this flow: {stop}") from stop
        status = "ok"
        try:
            if len(points) > 1:
                for reached in solver(watch, state, points, control):
                    record(reached)
                    state = reached
        except Stopped as stop:
            status = str(stop)
    z, loss, drifts = (torch.stack(column) for column in zip(*records, strict=True))
    stats = {"evaluations": watch.evaluations, "seconds": watch.seconds, "method": method}
    stats |= {"rtol": control.rtol, "atol": control.atol}
    reached_times = torch.tensor(points[: len(records)], dtype=torch.float64, device=loss.device)
    return Trajectory(reached_times, z, loss, drifts, state, stats, status)


def _evaluate(flow: Flow, state: Tensor, start: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """z, loss and drift of a state at time t; raises Stopped unless all of them are finite."""
    try:
        z = flow.product(state)
        entry = z, flow.loss(z), drift(flow.law(state), start)
    except FAILURES as error:
        raise Stopped(f"the end-to-end map could not be computed at t = {t:.6g}: {error}") from error
    for name, value in zip(("end-to-end map", "loss", "law"), entry, strict=True):
        if not bool(torch.isfinite(value).all()):
            raise Stopped(f"the {name} is not finite at t = {t:.6g}: the flow blew up, or its step was too large")
    return entry


def _check_times(times: Tensor | Sequence[float]) -> list[float]:
    points = float_tensor("times", torch.as_tensor(times, dtype=torch.float64), ndim=1)
    if points.ndim != 1:
        raise ValueError(f"times must have shape (T,), got {tuple(points.shape)}")
    steps = torch.diff(points)
    if not bool((steps > 0).all()):
        i = int((steps <= 0).nonzero()[0])
        raise ValueError(f"times must increase strictly, got {points[i]:.6g} followed by {points[i + 1]:.6g}")
    return points.tolist()


def _check_control(rtol: float, atol: float, step: float | None, dtype: torch.dtype) -> Control:
    wanted = {"rtol": positive("rtol", rtol), "atol": positive("atol", atol)}
    floor = 100 * torch.finfo(dtype).eps
    if wanted["rtol"] < floor:
        warnings.warn(f"rtol = {rtol:g} is below what {dtype} can hold; it is raised to {floor:.2g}", stacklevel=3)
        wanted["rtol"] = floor
    return Control(**wanted, step=None if step is None else positive("step", step))
