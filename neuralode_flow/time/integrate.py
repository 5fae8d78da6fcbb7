"""The one verb: move any flow through training time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import count, float_tensor, no_derivatives, positive, real
from ..depth.grid import Profile, Remembered
from ..files import as_path
from ..flows.base import Flow
from ..losses import check_derivatives
from ..modes import uncompiled
from ..threads import one_blas_thread
from .base import FAILURES, METHODS, Control, Watch, fixed_steps
from .checkpoint import Checkpoint, description, digest
from .depth import FixedDepth, depth_control, sampled, unwarned
from .endings import EVENTS_ASKED
from .estimate import Companion
from .events import checked as checked_events
from .interrupt import postponed
from .progress import Report, Throttled, shown
from .run import Run
from .trajectory import Trajectory

Observer = Callable[[int, Tensor], Tensor | None]


class IntegrationError(RuntimeError):
    """A run did not end as it should; the message is its status and `trajectory` what it reached."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory.status)
        self.trajectory = trajectory


_ATOL = 1e-10


@uncompiled
def integrate(
    flow: Flow,
    state: Tensor | Profile,
    times: Tensor | Sequence[float],
    method: str = "dopri5",
    rtol: float = 1e-8,
    atol: float | None = None,
    *,
    step: float | None = None,
    stop: Mapping[str, Any] | None = None,
    max_evaluations: int = 1_000_000,
    max_seconds: float | None = None,
    adapt: bool = False,
    estimate: bool = False,
    checkpoint: str | Path | None = None,
    every: float = 60.0,
    observe: Observer | None = None,
    progress: bool | Report = False,
    throw: bool = False,
) -> Trajectory:
    """Integrates a training flow.

    Parameters
    ----------
    flow : Flow
        `ContinuousFlow`, `FiniteFlow`, `IntrinsicFlow`, or anything with velocity, product, law, check and loss.
    state : Tensor or profile
        Initial state, with any leading batch axes; or a function of depth that `flow.sample` takes. Members of a batch
        share the step size; the tolerance is met in the root mean square over all entries, so for error control of
        its own run a member alone.
    times : Tensor (T,) or sequence of floats
        Output times, increasing; the first is the time of `state`.
    method : str
        "auto": LSODA's Adams formulas until the problem turns out stiff, CVODE_BDF from then on.
        Adaptive: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun (torchdiffeq), RK23, RK45, DOP853, Radau, BDF, LSODA
        (SciPy), CVODE_Adams, CVODE_BDF (SUNDIALS, matrix-free). Fixed steps: euler, midpoint, heun2, heun3, rk4 (the
        3/8 rule), explicit_adams, implicit_adams (torchdiffeq), implicit_midpoint.
    rtol, atol : float
        Tolerances of adaptive methods; atol is 1e-10 by default. What the state's dtype cannot hold (rtol below
        100 ε, atol below ε times the largest entry of the state or 1) is raised, with a warning where it was asked for.
    step : float, optional
        Step size of fixed-step methods; by default one step per output interval. They do not look at the tolerances.
    stop : dict, optional
        Events that end the run where they happen, located as accurately as the steps are, and their bounds (keys of
        `EVENTS`): "loss", "gradient" (‖∇f(z)‖), "steady" (largest entry of the velocity), "sigma_min" (of z): ends
        when it falls to the bound; "norm" (of z), "time": when it rises to it. An event of one's own has a name and a
        function (t, z, state) → number that falls to zero. Of a batch, all members must get below a loss, gradient or
        rate; the first to reach σ_min or a norm ends the run. One that has happened at the start ends it there. Inside
        a step an event is followed along a cubic (of multistep methods, along their polynomial) through a quarter, half
        and three quarters of the step and to the bottom that these show: a dip below zero and back is found unless it
        is narrower than about a quarter of the step and steep, or shallower than that cubic is accurate. A loss that is
        lower after the step is not looked at inside: it falls along a gradient flow.
    max_evaluations : int
        Budget of velocity evaluations in the whole run; a step that is repeated after a resumption counts again.
    max_seconds : float, optional
        Budget of wall time in the whole run, with the second one of `estimate`, in seconds; counted on when a run is
        resumed.
    adapt : bool
        Lets the depth grid of a `ContinuousFlow` follow W: refined when the error that it makes in z reaches a tenth
        of the tolerance, coarsened when it is far below; `stats["grid"]` is the last grid.
    estimate : bool
        Also measures the error in time, by a second run (of as many evaluations) that halves every step; multistep
        methods, which choose their steps anew, run at 30 times smaller tolerances instead. A status "ok" of an adaptive
        method then says that depth and time error together are at most ten times atol + rtol ‖z‖; methods of fixed
        steps have no tolerance, and `time_error` is all that is said. Where the second run did not get, `time_error` is
        NaN, and the status says so. A multistep run of at most 30 steps is measured by DOP853.
    checkpoint : path, optional
        A file that holds the run: written every `every` seconds of wall time, at the end, and when SIGINT or SIGTERM
        comes (which then act as ever). If it exists the run goes on from it, from the end of its last whole step
        whatever stopped it; one-step methods then give the same numbers to the bit as an uninterrupted run. One that
        reached its last time or an event is not run again. `load` reads what it has reached.
    every : float
        Seconds of wall time between two savings; 0 saves after every step.
    observe : callable, optional
        Called as observe(i, state) at every output time i = 0, 1, … in turn (for the outputs after a checkpoint only,
        which holds whole steps: an output of a step that did not end is observed again).
        Tensors that it returns are kept in `Trajectory.observed`, also through a checkpoint. With `adapt` it is given
        the state on the flow's own grid.
    progress : bool or callable
        True: a bar on stderr, if that is a terminal. A function is called with a `Progress`.
    throw : bool
        Raises IntegrationError, which holds the trajectory, unless the run reached its last time or an event.

    Returns
    -------
    Trajectory
        When the run stops early it holds what was reached, and `status` says why.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, before any work is done: among them a state or flow that requires a gradient where they are
        recorded, or that a transform of torch.func follows; also for a checkpoint that is damaged or of another run.
    OSError
        If the checkpoint cannot be written at the start, or is in use by another run.
    IntegrationError
        With ``throw=True``.
    """
    METHODS.check(method)
    points = _check_times(times)
    flow, start, profile = _check_start(flow, state)
    control = _check_control(rtol, atol, step, start, fixed_steps(METHODS[method]))
    count("max_evaluations", max_evaluations)
    if max_seconds is not None:
        positive("max_seconds", max_seconds)
    if control.step is not None and (points[-1] - points[0]) / control.step > max_evaluations:
        raise ValueError(
            f"step = {step:g} takes more steps than max_evaluations = {max_evaluations}: raise one of them"
        )
    if control.step is not None and not fixed_steps(METHODS[method]):
        raise ValueError(
            f"step = {step:g} is for methods of fixed steps, and {method} chooses its own: leave step out, or use "
            f"rtol and atol"
        )
    events = checked_events(stop, points[0])
    path = _check_path(checkpoint, every)
    if observe is not None and not callable(observe):
        raise TypeError(f"observe must be a function (i, state), got {observe!r}")
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be True, False or a function, got {progress!r}")
    for name, flag in (("adapt", adapt), ("estimate", estimate), ("throw", throw)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")

    given = flow
    with torch.no_grad():
        flow, start, misfit = sampled(flow, start, profile, adapt, control.rtol, control.atol)
        known = flow, start
        carrier = None if adapt else getattr(flow, "carrier", lambda: None)()
        if carrier is not None:
            flow, start = carrier, carrier.enter(start)

    def run(
        points: list[float],
        method: str,
        control: Control,
        path: Path | None,
        goals: list[float] | None = None,
        spent: float = 0.0,
    ) -> tuple[Trajectory, list[float]]:
        """A run and when its steps ended; that of a companion has goals, and neither events nor an observer."""
        depth = depth_control(flow, adapt, control.rtol, control.atol, misfit)
        left = None if max_seconds is None else max(0.0, max_seconds - spent)
        watch = Watch(flow, max_evaluations, left)
        one = Run(depth, watch, start, points, method, control)
        if goals is None:
            one.events, one.observe = events, _on_grid_of(given, depth, observe) if adapt else observe
        else:
            one.goals = goals
        one.progress = Throttled(report)
        if path is None:
            return one.whole(), list(one.ends)
        settings = _settings(*known, points, method, control, stop if goals is None else None, adapt)
        if goals:
            settings["steps"] = f"{len(goals)} {digest(torch.tensor(goals))}"
        with Checkpoint(path, float(every), settings) as one.checkpoint, postponed(True) as one.request:
            return one.whole(), list(one.ends)

    with torch.no_grad(), one_blas_thread(), shown(progress) as report:
        result, ends = run(points, method, control, path)
        if estimate:
            better = Companion(flow, method, control, result, ends)
            # A run that can go on will have another companion.
            ended = result.ending in EVENTS_ASKED or float(result.times[-1]) == points[-1]
            companion = path.with_name(f"{path.stem}.tight{path.suffix}") if path and ended else None
            tight, _ = run(
                result.times.tolist(), better.stand_in, better.control, companion, better.goals, result.stats["seconds"]
            )
            result = better.measured(tight)
    if throw and result.ending not in ("ok", *EVENTS_ASKED):
        raise IntegrationError(result)
    return result


def _on_grid_of(given: Any, depth: FixedDepth, observe: Observer | None) -> Observer | None:
    """An observer that is shown the state on the grid of the given flow, whatever grid it is on."""
    if observe is None:
        return None
    return lambda i, state: observe(i, depth.flow.transfer(state, given.grid))


def _settings(
    flow: Flow,
    start: Tensor,
    points: list[float],
    method: str,
    control: Control,
    stop: Mapping[str, Any] | None,
    adapt: bool,
) -> dict[str, Any]:
    """What a run is; all of it must be the same for a checkpoint to be taken up."""
    loss = flow.loss(flow.product(start))
    return {
        "flow": description(flow),
        "state": f"{start.dtype} {description(start)}",
        "loss at the start": [float(f"{value:.9e}") for value in loss.reshape(-1).tolist()[:16]],
        "times": f"{len(points)} from {points[0]:g} to {points[-1]:g} {digest(torch.tensor(points))}",
        "method": method,
        "rtol": control.rtol,
        "atol": control.atol,
        "step": control.step,
        "stop": {name: description(bound) for name, bound in (stop or {}).items()},
        "adapt": adapt,
    }


def _check_times(times: Tensor | Sequence[float]) -> list[float]:
    try:
        values = torch.as_tensor(times)
        if values.dtype == torch.bool or values.is_complex():
            raise TypeError(f"entries of kind {values.dtype}")
        values = values.to(torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"times must be a sequence of real numbers, got {times!r} ({error})") from error
    if values.ndim != 1:
        raise ValueError(f"times must have shape (T,), got {tuple(values.shape)}")
    points = float_tensor("times", values)
    steps = torch.diff(points)
    if not bool((steps > 0).all()):
        i = int((steps <= 0).nonzero()[0])
        raise ValueError(f"times must increase strictly, got {points[i]:.6g} followed by {points[i + 1]:.6g}")
    return points.tolist()


def _check_start(flow: Flow, state: Tensor | Profile) -> tuple[Flow, Tensor, Profile | None]:
    """The flow, its initial state, and the function of depth that it is sampled from, if any."""
    missing = [name for name in ("velocity", "product", "law", "check", "loss") if not hasattr(flow, name)]
    if isinstance(flow, type):
        raise TypeError(f"flow must be a flow and not the class {flow.__name__}: make one, such as {flow.__name__}(…)")
    if missing:
        raise TypeError(f"flow must be a flow such as ContinuousFlow, got {type(flow).__name__} without {missing[0]}")
    profile = None if isinstance(state, Tensor) or not callable(state) else Remembered(state)
    start: Any = state
    if profile is not None and hasattr(flow, "sample"):
        start = unwarned(flow, profile)
    elif profile is not None:
        raise TypeError(f"state must be a tensor for {type(flow).__name__}, which samples no function of depth")
    if isinstance(start, Tensor):
        no_derivatives("state", start)
    _check_numbers(flow)
    if profile is None:
        flow.check(start)
    recorded = False
    with suppress(*FAILURES):  # the run tells of them
        z = flow.product(start)
        recorded = torch.is_grad_enabled() and flow.loss(z).requires_grad
        check_derivatives(flow.loss, z.detach())
    if recorded:
        raise TypeError(
            "flow depends on a tensor that requires a gradient, but integrate does not carry derivatives through "
            "time: detach that tensor, or call integrate under torch.no_grad()"
        )
    return flow, start.detach(), profile


def _check_numbers(flow: Flow) -> None:
    """Raises where derivatives are taken for a tensor of the flow, its loss, kernel, grid or depth solver."""
    own = getattr(flow, "__dict__", {})
    for owner, part in [("flow", flow), *((f"flow.{name}", part) for name, part in own.items())]:
        for name, tensor in getattr(part, "__dict__", {}).items():
            if isinstance(tensor, Tensor):
                no_derivatives(f"{owner}.{name}", tensor)


def _check_control(rtol: float, atol: float | None, step: float | None, start: Tensor, fixed: bool) -> Control:
    wanted = {"rtol": positive("rtol", rtol), "atol": _ATOL if atol is None else positive("atol", atol)}
    raised = []
    eps = torch.finfo(start.dtype).eps
    for name, floor in (("rtol", 100 * eps), ("atol", eps * float(start.abs().max().clamp(min=1.0)))):
        if wanted[name] < floor:
            if name == "rtol" or atol is not None:
                raised.append(f"{name} = {wanted[name]:g} to {floor:.2g}")
            wanted[name] = floor
    if raised and not fixed:
        warnings.warn(f"tolerances below what {start.dtype} can hold are raised: {' and '.join(raised)}", stacklevel=3)
    return Control(**wanted, step=None if step is None else positive("step", step))


def _check_path(checkpoint: str | Path | None, every: float) -> Path | None:
    if real("every", every) < 0:
        raise ValueError(f"every must be at least 0 seconds, got {every!r}")
    if checkpoint is None:
        return None
    path = as_path("checkpoint", checkpoint)
    if path.is_dir() or str(checkpoint).endswith("/"):
        raise ValueError(f"checkpoint={checkpoint} is a folder; give a file in it, such as {path / 'run.npz'}")
    return path
