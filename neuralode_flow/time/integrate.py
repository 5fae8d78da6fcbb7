"""The one verb: move any flow through training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..depth.grid import Profile
from ..flows.base import Flow
from ..flows.capabilities import Carried, offers
from ..interrupt import postponed
from ..modes import undisturbed, unraised
from ..threads import one_blas_thread
from .apart import Apart, check_apart, check_own_steps
from .arguments import (
    check_budgets,
    check_checks,
    check_derivative,
    check_options,
    check_round_off,
    check_shared_atol,
    checked_control,
    checked_path,
    checked_start,
    kept,
    output_times,
)
from .base import METHODS, Control, fixed_steps
from .checkpoint import Checkpoint, description
from .endings import EVENTS_ASKED
from .estimate import Companion
from .events import checked as checked_events
from .progress import Report, Throttled, shown
from .records import Observer
from .resolution import SMALLER, UNFIT, AdaptiveGrid, FixedGrid, Sampled, sampled
from .run import Run, Surroundings, Task, carried_out
from .trajectory import Trajectory
from .watch import Budget


class IntegrationError(RuntimeError):
    """A run did not end as it should; the message is its status and `trajectory` what it reached.

    Examples
    --------
    >>> flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())
    >>> try:
    ...     nf.integrate(flow, torch.eye(2), [0.0, 1.0], max_evaluations=5, throw=True)
    ... except nf.IntegrationError as error:
    ...     print(type(error.trajectory).__name__)
    Trajectory
    """

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory.status)
        self.trajectory = trajectory

    def __reduce__(self) -> tuple[type[Self], tuple[Trajectory]]:
        """So that a process that raises it can hand it to another."""
        return type(self), (self.trajectory,)


@undisturbed
@unraised
def integrate(
    flow: Flow,
    state: Tensor | Profile,
    times: Tensor | Sequence[float],
    method: str = "dopri5",
    rtol: float = 1e-8,
    atol: float | None = None,
    *,
    control: str = "shared",
    step: float | None = None,
    stop: Mapping[str, Any] | None = None,
    max_evaluations: int = 1_000_000,
    max_seconds: float | None = None,
    adapt: bool = False,
    estimate: bool = False,
    dense: bool = False,
    checks: bool = True,
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
        share the step size, and the tolerance is met in the root mean square over all entries, unless `control` says
        otherwise.
    times : Tensor (T,) or sequence of floats
        Output times, increasing; the first is the time of `state`.
    method : str
        "auto": LSODA's Adams formulas until the problem turns out stiff, or is known to be so at the start; from then
        on NDF where the flow solves Newton's systems itself (IntrinsicFlow, ContinuousFlow), else CVODE_BDF.
        Adaptive: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun (torchdiffeq), RK23, RK45, DOP853, Radau, BDF, LSODA
        (SciPy), CVODE_Adams, CVODE_BDF (SUNDIALS, matrix-free), rodas5p (linearly implicit, order 5, by the derivative
        of the velocity as a matrix: up to 1024 numbers). Fixed steps: euler, midpoint, heun2, heun3, rk4 (the 3/8
        rule), explicit_adams, implicit_adams (torchdiffeq), implicit_midpoint, carpenter_kennedy (order 4, in the
        memory of two states).
    rtol, atol : float
        Tolerances of adaptive methods, and with any method what the depth grid is held to, whether it stays or adapts;
        atol is 1e-10 by default. What the state's dtype cannot hold (rtol below 100 ε, atol below ε times the largest
        entry of the state or 1) is raised, with a warning where it was asked for.
        Members of a batch have one atol, and a warning says where the largest makes it too large for the smallest.
    control : str
        "shared": one step for all members of a batch. "member": each has steps, acceptance, events, a budget of
        evaluations and an end of its own, and those that have come to the next output, or have ended, cost nothing. Its
        numbers are those of a run of it alone at these tolerances: to the bit where the velocity of a member does not
        depend on the others (the compiled engine's, of `ContinuousFlow` and `FiniteFlow`), else to round-off. One that
        ends stays where it met an event, or before the step that failed: its later rows repeat that, and
        `stats["members"]` says how, when, and in how many evaluations and steps each ended. Adaptive explicit methods
        have it, and rodas5p for stiff members; dense, estimate and adapt go with shared steps. A loss with numbers of
        its own for the members has to offer `select`.
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
        is narrower than about a quarter of the step and steep, or shallower than that cubic is accurate. Along a
        gradient flow a loss that is lower after the step is not looked at inside: it falls all the way.
    max_evaluations : int
        Budget of velocity evaluations in the whole run; a step that is repeated after a resumption counts again.
    max_seconds : float, optional
        Budget of wall time in the whole run, with the others of `estimate`, in seconds; counted on when a run is
        resumed.
    adapt : bool
        Lets the depth grid of a `ContinuousFlow` follow W: refined when the error that it makes in z, estimated from
        W, or will make of it by that of the velocity, reaches a tenth of the tolerance, coarsened when it is far below;
        `stats["grid"]` is the last grid.
    estimate : bool
        Also measures the error in time, by a second run (of as many evaluations) that halves every step; multistep
        methods, which choose their steps anew, run at 1000 times smaller tolerances instead. Where the depth grid may
        have a part in the error, a third run of the same steps on twice the nodes measures that, with all that the grid
        did on the way; of a class of one's own that is for its grid alone the estimate stays. A status "ok" of an
        adaptive method then says that depth and time error together are at most ten times atol + rtol ‖z‖; methods of
        fixed steps have no tolerance, and the errors are all that is said. Where the second run did not get,
        `time_error` is NaN, where the third did not, `depth_error` is estimated as without it, and the status says so.
        A multistep run of at most 30 steps is measured by DOP853.
    dense : bool
        Keeps z inside the steps too, so that the trajectory can be called, ``path(t)``, at any time between the first
        and the last: see `Trajectory`. One-step methods take a step to each of six times inside every step for it, five
        to seven times as many evaluations; multistep methods none. The numbers of the run itself stay the same.
    checks : bool
        Whether the drift of the law and the error in depth are measured at the outputs. False is for a run beside one
        where they are, such as the same in smaller steps: `drift` and `depth_error` are NaN, and the status tells
        nothing of the grid; the rest is the same to the bit. Where outputs are many or steps few they take as long as
        the steps. `adapt` and `estimate` need them.
    checkpoint : path, optional
        A file that holds the run: written every `every` seconds of wall time, at the end, and when SIGINT or SIGTERM
        comes (which then act as ever). If it exists the run goes on from it, from the end of its last whole step
        whatever stopped it; one-step methods then give the same numbers to the bit as an uninterrupted run. Members
        with steps of their own that have ended stay so, also where their budget of evaluations was used up and is now
        a larger one: later rows of theirs are kept. A run that reached its last time or an event is not run again; with
        more output times after the same ones it goes on from its last time: what was kept stays, and drift, errors,
        statistics and budgets are those of the whole run. `load` reads what it has reached.
    every : float
        Seconds of wall time between two savings; 0 saves after every step.
    observe : callable, optional
        Called as observe(i, state) at every output time i = 0, 1, … in turn (for the outputs after a checkpoint only,
        which holds whole steps: an output of a step that did not end is observed again), with a copy of the state.
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

    Examples
    --------
    >>> flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())
    >>> path = nf.integrate(flow, torch.eye(2), torch.linspace(0, 1, 5), "DOP853", rtol=1e-8, atol=1e-10, estimate=True)
    >>> path.z.shape, path.status, float(path.time_error.max()) < 1e-6
    (torch.Size([5, 2, 2]), 'ok', True)
    >>> early = nf.integrate(flow, torch.eye(2), [0.0, 9.0], stop={"loss": 0.1})
    >>> early.ending, early.status
    ('loss', 'the loss fell to 0.1, as was asked for, at t = 0.62113')
    """
    METHODS.check(method)
    points = output_times(times)
    flow, start, profile = checked_start(flow, state)
    accuracy = checked_control(rtol, atol, step, start, fixed_steps(METHODS[method]))
    check_budgets(max_evaluations, max_seconds, accuracy, points, method)
    events = checked_events(stop, points[0])
    path = checked_path(checkpoint, every)
    check_options(observe, progress, adapt=adapt, estimate=estimate, dense=dense, checks=checks, throw=throw)
    start = kept(start, observe, progress, *(stop or {}).values())
    check_checks(checks, adapt=adapt, estimate=estimate)
    check_own_steps(control, method, adapt=adapt, estimate=estimate, dense=dense)
    with torch.no_grad():
        check_round_off(flow, start, accuracy.rtol, accuracy.atol)
        known = sampled(flow, start, profile, adapt, accuracy.rtol, accuracy.atol)
        carrier = known.flow.carrier() if not adapt and offers(known.flow, Carried) else None
        moving = (known.flow, known.start) if carrier is None else (carrier, carrier.enter(known.start))
        kind = Apart if control == "member" and check_apart(*moving, singly=bool(events)) else Run
        check_derivative(moving[0], moving[1], method, kind is Apart)
        if carrier is None and not fixed_steps(METHODS[method]):
            check_shared_atol(known.flow, known.start, accuracy, atol)
    with torch.no_grad(), one_blas_thread(), shown(progress) as report:
        budget = Budget(max_evaluations, max_seconds)
        course = _Course(flow, known, moving[0], kind, adapt, budget, float(every), report)
        task = Task(moving[1], points, method, accuracy, events=events, observe=observe, dense=dense, checks=checks)
        result, ends = course.run(task, path, stop or {})
        if estimate:
            result = course.measured(task, result, ends, path)
    if throw and result.ending not in ("ok", *EVENTS_ASKED):
        raise IntegrationError(result)
    return result


@dataclass(frozen=True, eq=False)
class _Course:
    """What a run and its companion have in common.

    Attributes
    ----------
    given : Flow
        On the grid of the user, on which states are observed.
    known : Sampled
        On a grid that resolves the profile: a checkpoint knows the run by it.
    flow : Flow
        The same in the coordinates in which it is integrated.
    kind : type
        Run, or Apart where members take steps of their own.
    adapt : bool
    budget : Budget
    every : float
        Seconds between two savings.
    report : callable or None
    grid_tolerance : float
        What a depth grid that follows W is held to, in tolerances of the steps.
    """

    given: Any
    known: Sampled
    flow: Any
    kind: type[Run]
    adapt: bool
    budget: Budget
    every: float
    report: Report | None
    grid_tolerance: float = 1.0

    def run(
        self, task: Task, path: Path | None, stop: Mapping[str, Any], spent: float = 0.0
    ) -> tuple[Trajectory, list[float]]:
        """A trajectory and when its steps ended, after `spent` seconds of the budget."""
        control = task.control
        kind = AdaptiveGrid if self.adapt else self.kind.grid_kind
        scale = self.grid_tolerance
        grid = kind(self.flow, control.rtol * scale, control.atol * scale, self.known.misfit)
        if self.adapt and task.observe is not None:
            task = replace(task, observe=self._on_given_grid(task.observe, grid))
        most, seconds = self.budget
        budget = Budget(most, None if seconds is None else max(0.0, seconds - spent))
        with ExitStack() as held:
            checkpoint = None
            if path is not None:
                series = {"times": task.points, "steps": task.goals}
                checkpoint = held.enter_context(Checkpoint(path, self.every, self._settings(task, stop), series))
            request = held.enter_context(postponed(path is not None))
            return carried_out(task, grid, budget, Surroundings(checkpoint, request, Throttled(self.report)), self.kind)

    def measured(self, task: Task, result: Trajectory, ends: list[float], path: Path | None) -> Trajectory:
        """The trajectory with its error in time, from a companion, which has neither events nor an observer.

        Where the grid may have a part in the error as well, another one on a finer grid measures that.
        """
        better = Companion(self.flow, task.method, task.control, result, ends)
        # A run that can go on will have another companion.
        ended = result.ending in EVENTS_ASKED or float(result.times[-1]) == task.points[-1]
        file = path if ended else None
        times, spent = result.times.tolist(), result.stats["seconds"]
        # A run of few steps that is made longer may have another method for it.
        by = "" if better.stand_in == task.method else f".{better.stand_in}"
        companion = Task(task.start, times, better.stand_in, better.control, better.goals, checks=self.adapt)
        # Former versions had the second and the third at other tolerances.
        name = ".tighter" if not better.halves else ".tight" if better.control.solved == 1 else ".solved"
        tight = self.run(companion, _beside(file, f"{name}{by}"), {}, spent)[0]
        finer = self._finer(task.control) if better.depth_matters(tight) else None
        if finer is None:
            return better.measured(tight)
        same_steps = Task(finer.known.start, times, task.method, better.same, better.steps, checks=self.adapt)
        fine = finer.run(same_steps, _beside(file, ".fine"), {}, spent + tight.stats["seconds"])[0]
        return better.measured(tight, fine)

    def _finer(self, control: Control) -> _Course | None:
        """The same on a grid that makes less of an error; None of a flow that has no grid, or is for this one alone."""
        try:
            known = self.known.finer()
            if known is not None:
                known.flow.velocity(known.start)
        except UNFIT:
            known = None
        if known is None:
            return None
        if self.adapt:
            flow, start, profile, _ = known
            known = sampled(flow, start, profile, True, control.rtol * SMALLER, control.atol * SMALLER)
        return replace(self, known=known, flow=known.flow, grid_tolerance=SMALLER)

    def _on_given_grid(self, observe: Observer, grid: FixedGrid) -> Observer:
        """An observer that is shown the state on the grid of the given flow, whatever grid it is on."""
        return lambda i, state: observe(i, grid.flow.transfer(state, self.given.grid))

    def _settings(self, task: Task, stop: Mapping[str, Any]) -> dict[str, Any]:
        """What a run is; all of it must be the same for a checkpoint to be taken up."""
        flow, start = self.known.flow, self.known.start
        loss = flow.loss(flow.product(start))
        settings = {
            "flow": description(flow),
            "state": f"{start.dtype} {description(start)}",
            "loss at the start": [float(f"{value:.9e}") for value in loss.reshape(-1).tolist()[:16]],
            "method": task.method,
            "rtol": task.control.rtol,
            "atol": task.control.atol,
            "step": task.control.step,
            "stop": {name: description(bound) for name, bound in stop.items()},
            "adapt": self.adapt,
        }
        own: dict[str, Any] = {"control": "member"} if self.kind is Apart else {}
        own |= {} if task.control.solved == 1 else {"solved": task.control.solved}
        return settings | own | ({"dense": True} if task.dense else {}) | ({} if task.checks else {"checks": False})


def _beside(path: Path | None, name: str) -> Path | None:
    """The file of a companion, beside that of its run."""
    return path and path.with_name(f"{path.stem}{name}{path.suffix}")
