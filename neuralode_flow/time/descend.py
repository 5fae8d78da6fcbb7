"""The other verb: train any flow in steps of a given rate, by a step rule."""

from __future__ import annotations

import copy
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import all_finite, count, of_members, positive, real
from ..depth.grid import Profile
from ..flows.base import Flow, lends_velocity
from ..flows.capabilities import Descends, itself_offers, replayed
from ..interrupt import Request, postponed
from ..looks import Looks, as_one
from ..modes import undisturbed, unraised
from ..registry import did_you_mean
from ..signatures import check_range, settings
from ..threads import one_blas_thread
from .arguments import check_options, check_round_off, checked_path, checked_start, kept
from .base import FAILURES
from .checkpoint import Checkpoint, Saved, description
from .endings import EVENTS_ASKED, REACHED, Stopped
from .events import Point, Stop
from .events import checked as checked_events
from .integrate import IntegrationError
from .lookout import value
from .members import advice, culprits, not_finite
from .progress import Progress, Report, Throttled, shown
from .records import Observer, Records
from .resolution import FixedGrid, sampled
from .snapshot import panels_and_order
from .steprule import STEP_RULES, AlongGradient, AlongVelocity, Ground, StepRule
from .trajectory import Trajectory

R = TypeVar("R")

# The status speaks of a depth grid whose error of z is more than ten times this part of z: rules such as sign descent
# make jumps of W in depth, and what is trained is the model on the grid. `depth_error` always has the error.
_RESOLVED = 1e-3

# Where a checkpoint has the state of the last row that runs of more steps have as well, if it is another.
_RECORDED = "_recorded_state"

# A loss that has grown to so many times 1 + its start does not come back: float64 has no digits left for it.
GROWN = 1e12


@undisturbed
@unraised
def descend(
    flow: Flow,
    state: Tensor | Profile,
    steps: int,
    rule: str = "gd",
    rate: float = 0.01,
    *,
    record: int = 1,
    stop: Mapping[str, Any] | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    every: float = 60.0,
    observe: Observer | None = None,
    progress: bool | Report = False,
    throw: bool = False,
    **options: Any,
) -> Trajectory:
    """Trains a flow in steps: W_{n+1} from W_n by a rule of a fixed rate η, as an optimiser does.

    Parameters
    ----------
    flow : Flow
        `ContinuousFlow`, `FiniteFlow`, `IntrinsicFlow`, `FactorizationFlow`, or anything that `integrate` takes. The
        gradient is minus its velocity: that in L² over depth, L times the partial derivatives of L layers.
    state : Tensor or profile
        Initial state, with any leading batch axes, which are trained side by side; or a function of depth that
        `flow.sample` takes.
    steps : int
        Number of steps.
    rule : str
        A key of `STEP_RULES`: gd, heavy_ball, nesterov, normalised (by the norm over all depths), layer_normalised (at
        each depth), muon, lars, sign, adam, weight_decay, sgd, label_noise.
    rate : float
        Step size η, in flow time: n steps of gd are about a time nη of the flow.
    record : int
        z, loss and drift are recorded every so many steps, and after the last.
    stop : dict, optional
        Events that end the run, as in `integrate`, looked at after every step, which costs a product and more; the run
        ends after the first step at which one has happened.
    max_evaluations : int, optional
        Budget of gradients; counted on when a run is resumed.
    max_seconds : float, optional
        Budget of wall time, in seconds; counted on when a run is resumed.
    checkpoint, every, observe, progress, throw
        As in `integrate`. A run that is resumed gives the same numbers to the bit; with more steps one that has ended
        goes on.
    **options
        Of the rule: `momentum` in [0, 1) of heavy_ball, nesterov and muon; `polar` ("svd" or "newton_schulz") of muon;
        `beta1`, `beta2`, `epsilon` of adam; `decay` and `of` ("weights" or "layers") of weight_decay; `batch`,
        `sampling` ("replacement" or "epochs") and `seed` of sgd; `sigma` and `seed` of label_noise.

    Returns
    -------
    Trajectory
        Its times are η times the number of steps, and `stats` has "rule", "rate", "record" and "options". Where the
        steps say how an exact law moves, `stats` has "law_in_steps" true and `drift` is its distance from where these
        very steps take it (above d = 4 estimated along four directions): for steps Δ along gradients (gd, normalised,
        sgd, label_noise) C_{n+1} = C_n + ΔᵀΔ − ΔΔᵀ, and for heavy_ball and weight_decay as docs/math.md has it; else it
        is the distance from the start. A run that leaves the range of numbers ends there, and `status` says at which
        step.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, before any work is done: a rate that is not above 0, unknown rules and options (the nearest
        name is given), an option out of its range or of no use to this flow.
    OSError
        If the checkpoint cannot be written at the start, or is in use by another run.
    IntegrationError
        With ``throw=True``, unless the last step or an event was reached.

    Examples
    --------
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), nf.Quadratic(2 * torch.eye(2)))
    >>> start = nf.INITIALS["relaxed_balanced"](torch.tensor([[1.0, 0.3], [-0.2, 0.8]]), seed=1)
    >>> path = nf.descend(flow, start, steps=200, rule="heavy_ball", rate=0.05, record=50, momentum=0.5)
    >>> path.times.tolist(), path.status, float(path.loss[-1]) < 1e-12
    ([0.0, 2.5, 5.0, 7.5, 10.0], 'ok', True)
    >>> nf.descend(nf.FiniteFlow(8, flow.loss), torch.zeros(8, 2, 2), steps=100, rate=3.0).ending
    'diverged'
    """
    kind = STEP_RULES[rule]
    number, record, rate = count("steps", steps), count("record", record), positive("rate", rate)
    flow, start, profile = checked_start(flow, state)
    chosen = checked_options(rule, options)
    events = checked_events(stop, 0.0)
    if max_evaluations is not None:
        count("max_evaluations", max_evaluations)
    if max_seconds is not None:
        positive("max_seconds", max_seconds)
    path = checked_path(checkpoint, every)
    check_options(observe, progress, throw=throw)
    start = kept(start, observe, progress, *(stop or {}).values())
    with torch.no_grad(), one_blas_thread(), shown(progress) as report, ExitStack() as held:
        check_round_off(flow, start)
        known = sampled(flow, start, profile, False, 0.0, 0.0)
        task = Task(
            known.flow, start, rule, rate, number, record, chosen, events, observe, max_evaluations, max_seconds
        )
        file = None
        if path is not None:
            file = held.enter_context(
                Checkpoint(path, float(every), _settings(task, stop or {}), {"steps": range(number)})
            )
        request = held.enter_context(postponed(path is not None))
        result = Descent(task, kind, known.misfit, file, request, Throttled(report)).whole()
    if throw and result.ending not in (*REACHED, *EVENTS_ASKED):
        raise IntegrationError(result)
    return result


def check_rule(flow: Flow, state: Tensor | Profile, rule: str, rate: float, **options: Any) -> None:
    """Raises, as `descend` does before any work, where a rule cannot train a flow from a state; takes no step."""
    kind = STEP_RULES[rule]
    flow, start, _ = checked_start(flow, state)
    chosen = checked_options(rule, options)
    with torch.no_grad():
        members = flow.loss(flow.product(start)).ndim
        kind(Ground(flow, _no_step, _no_step, members, start), rate, **chosen)


def _no_step(*_: Any) -> Tensor:
    raise RuntimeError("a rule that is only looked at takes no step")


def checked_options(rule: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a rule, with its defaults; raises TypeError or ValueError for what it does not know or take."""
    fields = settings(STEP_RULES[rule])
    fields.pop("rate", None)
    for name in options:
        if name not in fields:
            valid = f"(valid: {', '.join(fields)})" if fields else "(it has none)"
            raise TypeError(f"rule={rule!r} has no option {name!r}{did_you_mean(name, fields)} {valid}")
    missing = [name for name, known in fields.items() if known.default is known.empty and name not in options]
    if missing:
        raise TypeError(f"rule={rule!r} needs its option {missing[0]!r}: give {missing[0]}=…")
    return {name: _checked(name, options.get(name, known.default), known.annotation) for name, known in fields.items()}


def _checked(name: str, value: Any, kind: Any) -> Any:
    """An option of the type and in the ranges of its annotation."""
    ranged = typing.get_origin(kind) is typing.Annotated
    plain = typing.get_args(kind)[0] if ranged else kind
    if plain in (str, bool) and not isinstance(value, plain):
        raise TypeError(f"{name} must be {'text' if plain is str else 'True or False'}, got {value!r}")
    if plain in (float, int):
        value = real(name, value) if plain is float else count(name, value, -sys.maxsize)
    if ranged:
        check_range(name, value, kind)
    return value


def _settings(task: Task, stop: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is; all of it must be the same for a checkpoint to be taken up."""
    loss = task.flow.loss(task.flow.product(task.start))  # of a function in the flow it is not known what it does
    return {
        "flow": description(task.flow),
        "state": f"{task.start.dtype} {description(task.start)}",
        "loss at the start": [float(f"{value:.9e}") for value in loss.reshape(-1).tolist()[:16]],
        "rule": task.rule,
        "rate": task.rate,
        "record": task.record,
        "options": task.options,
        "stop": {name: description(bound) for name, bound in stop.items()},
    }


@dataclass(frozen=True, eq=False)
class Task:
    """What a training in steps is to do."""

    flow: Any
    start: Tensor
    rule: str
    rate: float
    steps: int
    record: int
    options: dict[str, Any] = field(default_factory=dict)
    events: Sequence[Stop] = ()
    observe: Observer | None = None
    max_evaluations: int | None = None
    max_seconds: float | None = None


class Descent:
    """Takes the steps, from the start or from a checkpoint.

    Attributes
    ----------
    n : int
        Steps that were taken.
    state : Tensor
        The state after them.
    recorded : int and Tensor
        The last of them that runs of more steps record as well, and the state after it.
    """

    def __init__(
        self,
        task: Task,
        kind: type[StepRule],
        misfit: float | None,
        checkpoint: Checkpoint | None,
        request: Request,
        progress: Throttled,
    ) -> None:
        self.task, self.checkpoint, self.request, self.progress = task, checkpoint, request, progress
        self.grid = FixedGrid(task.flow, _RESOLVED, 0.0, misfit)
        self.checks = True  # the gradients
        self._lent = lends_velocity(task.flow)
        self._looks = None if task.start.is_cpu else Looks()
        self.n, self.state = 0, task.start
        self.recorded = 0, task.start
        self.evaluations, self._began = 0, time.perf_counter()
        self.records = Records(self.grid, task.start, 0.0, task.observe)
        self.saved = checkpoint and checkpoint.read()
        self._begin()
        ground = Ground(task.flow, self._velocity, self._with_loss, len(self.records.members), task.start)
        self.rule = kind(ground, task.rate, **task.options)
        self.law = self.rule.law()
        plain = type(self.rule).step is AlongGradient.step  # a step of one's own may be another one
        self.along = self.rule.along if self.law and plain and isinstance(self.rule, AlongGradient) else None
        # A flow that passes all on to another has a velocity of its own; a device repeats velocities, not such steps.
        self.descends = (
            self._looks is None
            and getattr(type(self.rule), "along", None) is AlongVelocity.along
            and self.along is not None
            and itself_offers(task.flow, Descends)
        )
        self.records.drift_of = self.law.drift if self.law else None
        self.records.most = GROWN * (1 + self.records.columns["loss"][0].abs())
        if self.saved:
            device = task.start.device
            memory = {name: torch.as_tensor(value, device=device) for name, value in self.saved.memory.items()}
            memory.pop(_RECORDED, None)
            if self.law:
                self.law.memory = {name: memory.pop(name) for name in self.law.memory}
            self.rule.memory = memory

    def _begin(self) -> None:
        """Records the start, or takes up what a checkpoint holds."""
        if not self.saved:
            try:
                self.records.output(0.0, self.state, self.state)
            except Stopped as stop:
                raise ValueError(f"state cannot be a start of this flow: {stop}") from stop
            return
        position = self.saved.position
        self.n, self.evaluations = position["steps"], position["evaluations"]
        self.state = self.saved.reached.state.to(self.task.start)
        self.grid.resume(position["grid"], position["depth"])
        # A shorter run has recorded its last step, which a longer one may not record.
        outputs = position["outputs"] if self.n == self.task.steps else 1 + self.n // self.task.record
        self.records.take_up(self.saved.reached, outputs)
        n, state = position.get("recorded", self.n), self.saved.memory.get(_RECORDED)
        self.recorded = n, self.state if state is None else torch.as_tensor(state).to(self.task.start)
        last, state = (self.n, self.state) if self.n == self.task.steps else self.recorded
        self.records.last = self.task.rate * last, state
        self._began -= position["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time of the run, also before it was resumed."""
        return time.perf_counter() - self._began

    @property
    def t(self) -> float:
        """The rate times the number of steps."""
        return self.task.rate * self.n

    def whole(self) -> Trajectory:
        """The trajectory, up to the end of the run."""
        ended = self.saved and (self.saved.reached.ending in EVENTS_ASKED or self.n >= self.task.steps)
        if self.saved and self.saved.position["finished"] and ended:
            return self.saved.reached
        ending, status, state = "ok", "ok", None
        try:
            if self.n == 0 and (event := self._happened(0, self.state)) is not None:
                raise event
            while self.n < self.task.steps:
                self._step()
                self.progress(self._where)
                self._pause()
            self.progress(self._where, last=True)
            sentence = self.grid.verdict(self.records.columns["z"][-1], self.grid.more)
            if sentence is not None:
                ending, status = "depth", sentence
        except Stopped as stop:
            ending, status = self._said(stop)
            state = self._record_last()
        result = self._trajectory(ending, status, state)
        if ending != "checkpoint":
            try:
                self._save(result, finished=self.n == self.task.steps or ending in EVENTS_ASKED)
            except Stopped as stop:
                return self._trajectory(stop.code, str(stop), state)
        return result

    def _step(self) -> None:
        """One step, which counts only if all of it is finite; then ends the run at an event that has happened."""
        task, n, memory = self.task, self.n + 1, dict(self.rule.memory)
        followed, state = dict(self.law.memory) if self.law else {}, None
        self._check_budgets()
        try:
            state = self._moved()
            event = self._happened(n, state)
            if n % task.record == 0 or n == task.steps:
                self.records.output(task.rate * n, state, self.state)
        except Stopped as stop:
            self.rule.memory = memory
            if self.law:
                self.law.memory = followed
            if stop.code in ("not_finite", "velocity") and (self.n > 0 or state is not None):
                raise Stopped("diverged", str(stop)) from stop
            raise  # a start without a gradient, which no rate is to blame for
        self.n, self.state = n, state
        if n % task.record == 0:
            self.recorded = n, state
        if event is not None:
            raise event

    def _check_budgets(self) -> None:
        """Raises Stopped where the run may spend no more."""
        task = self.task
        if task.max_evaluations is not None and self.evaluations >= task.max_evaluations:
            raise Stopped("evaluations", f"the budget of {task.max_evaluations} gradients was used up")
        if task.max_seconds is not None and self.seconds > task.max_seconds:
            raise Stopped("seconds", f"the budget of wall time was used up after {self.seconds:.3g} seconds")

    def _moved(self) -> Tensor:
        """The state after the next step, which the law takes into account; raises Stopped unless it is finite."""
        if self._looks is None:
            return self._taken()
        memory, followed = dict(self.rule.memory), dict(self.law.memory) if self.law else {}

        def taken() -> Tensor:
            self.rule.memory = dict(memory)
            if self.law:
                self.law.memory = dict(followed)
            return self._taken()

        return as_one(self._looks, taken)

    def _taken(self) -> Tensor:
        """The same, with a look at its numbers wherever that is due."""
        try:
            state, finite = self._followed()
        except FAILURES as error:
            raise Stopped("velocity", f"the step could not be computed: {error}") from error
        if not finite:
            if self.along:  # its gradient has not been looked at yet
                self.evaluations -= 1
                self.along(self.n, self.state)
            which = not_finite(self._shows(state), self.records.members)
            raise Stopped("not_finite", f"the state{of_members(which)} is not finite{advice(which)}")
        return state

    def _shows(self, state: Tensor) -> Tensor:
        """What is finite where a step is: every entry of it is in the law, in fewer numbers."""
        law = self.law.memory["law"] if self.law else state
        return law if law.numel() else state

    def _followed(self) -> tuple[Tensor, bool]:
        """The state after the next step, which the law takes into account, and whether it is finite."""
        if self.law is None or self.along is None:
            state = self.rule.step(self.n, self.state)
            if self.law is not None:
                self.law.step(self.state, state)
            return state, all_finite(self._shows(state))
        rate = self.task.rate
        if self.descends:
            self.evaluations += 1
            step = self._computed(partial(self.law.descend, rate=rate), self.task.flow, self.state)
            return step.following, step.finite
        self.checks = False
        try:
            direction = self.along(self.n, self.state)
        finally:
            self.checks = True
        needed = {kept.untyped_storage().data_ptr() for kept in (self.state, *self.rule.memory.values())}
        if direction.untyped_storage().data_ptr() in needed:
            direction = direction.clone()
        step = self.law.follow(self.state, direction, rate)
        return step.following, step.finite

    def _happened(self, n: int, state: Tensor) -> Stopped | None:
        """The first event in their order that has happened at the state after n steps."""
        if not self.task.events:
            return None
        point = Point(self.task.flow, lambda t, state: self._velocity(state), self.task.rate * n, state)
        for event in self.task.events:
            if value(event, point) <= 0:
                return Stopped(event.code, event.sentence(point, start=n == 0))
        return None

    def _said(self, stop: Stopped) -> tuple[str, str]:
        """Ending and status of a run that was stopped, with the step at which that was."""
        if stop.code in EVENTS_ASKED or stop.code == "checkpoint":
            return stop.code, str(stop)
        where = f"at step {self.n + 1} of {self.task.steps}"
        if stop.code != "diverged":
            return stop.code, f"{stop}, {where}"
        return "diverged", f"the training diverged {where}: {stop}; choose a smaller rate than {self.task.rate:g}"

    def _record_last(self) -> Tensor:
        """Adds a row for the state at which the run has ended, where z can be computed there; the state of the last."""
        depth = self.grid.memory()
        if self.t > self.records.times[-1]:
            try:
                self.records.add(self.t, self.state, self.state)
            except Stopped:
                return self.records.last[1]
            finally:  # a run that goes on from here does not look here
                self.grid.resume(None, depth)
        return self.state

    def _velocity(self, state: Tensor) -> Tensor:
        self.evaluations += 1
        velocity = self._seen(self._computed(replayed(self.task.flow), self.task.flow, state))
        return velocity.clone() if self._lent else velocity

    def _with_loss(self, state: Tensor, loss: Any) -> Tensor:
        other = copy.copy(self.task.flow)
        other.loss = loss
        self.evaluations += 1
        return -self._seen(self._computed(other.velocity, other, state))

    def _computed(self, function: Callable[[Tensor], R], flow: Any, state: Tensor) -> R:
        """What the gradient of a flow at a state gives; raises Stopped where there is none."""
        try:
            return function(state)
        except FAILURES as error:
            which = culprits(flow.velocity, FAILURES, state, self.state, self.records.members)
            what = f"the gradient{of_members(which)} could not be computed: {error}{advice(which)}"
            raise Stopped("velocity", what) from error

    def _seen(self, velocity: Tensor) -> Tensor:
        """The velocity; raises Stopped unless it is finite, where that is not seen later."""
        if self.checks and not all_finite(velocity):
            which = not_finite(velocity, self.records.members)
            raise Stopped("not_finite", f"the gradient{of_members(which)} is not finite{advice(which)}")
        return velocity

    def _pause(self) -> None:
        """Saves when it is due or a signal has come, which acts then: the run goes on if its handler returns."""
        if self.checkpoint is not None and (self.request.signal is not None or self.checkpoint.due()):
            status = f"the run had taken {self.n} steps when this was saved; it can be resumed"
            self._save(self._trajectory("interrupted", status), finished=False)
        self.request.act()

    def _save(self, reached: Trajectory, *, finished: bool) -> None:
        if self.checkpoint is None:
            return
        position = {
            "finished": finished,
            "outputs": self.records.outputs,
            "steps": self.n,
            "recorded": self.recorded[0],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "grid": panels_and_order(self.task.flow),
            "depth": self.grid.memory(),
        }
        law = self.law.memory if self.law else {}
        recorded = {} if self.recorded[0] == self.n else {_RECORDED: self.recorded[1]}
        memory = self.rule.memory | law | recorded
        self.checkpoint.write(Saved(replace(reached, state=self.state), position, memory, []))

    def _where(self) -> Progress:
        flow = self.task.flow
        try:
            loss = float(flow.loss(flow.product(self.state)).max())
        except FAILURES:  # between outputs nobody needs it
            loss = float("nan")
        return Progress(
            t=self.t,
            end=self.task.rate * self.task.steps,
            fraction=self.n / self.task.steps,
            loss=loss,
            step=self.task.rate,
            evaluations=self.evaluations,
            seconds=self.seconds,
        )

    def _trajectory(self, ending: str, status: str, state: Tensor | None = None) -> Trajectory:
        task = self.task
        stats = {
            "evaluations": self.evaluations,
            "products": 0,
            "seconds": self.seconds,
            "steps": self.n,
            "method": task.rule,
            "rule": task.rule,
            "rate": task.rate,
            "record": task.record,
            "options": task.options,
            "history": [],
            "grid": panels_and_order(task.flow),
            "law_modes": None if self.law else self.records.law_modes,
            "law_in_steps": self.law is not None,
        }
        state = self.state if state is None else state
        state = state if self.n else state.clone()  # that of a run without a step is still the caller's
        return Trajectory(**self.records.tensors(), state=state, stats=stats, status=status, ending=ending)
