"""One run of a method through its output times: steps, events, records, checkpoints."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import all_finite
from ..laws import LawChange, drift
from .barrier import Barrier, watched
from .base import FAILURES, METHODS, Control, Memory, Start, Stepper, Watch
from .checkpoint import ENDS, Checkpoint, moved
from .depth import AdaptiveDepth, FixedDepth
from .endings import EVENTS_ASKED, Stopped
from .events import Point, Stop
from .interrupt import Request
from .lookout import Lookout
from .members import advice, culprits, not_finite, of_members
from .progress import Progress, Throttled
from .reach import out_of_reach
from .trajectory import Trajectory

_COLUMNS = ("z", "loss", "drift")
_CARRIED = "carried"  # where a checkpoint has the state in the coordinates of the method


@dataclass(frozen=True, eq=False)
class Settled:
    """A run between two steps: what it is taken back to when the next one does not end, and what a checkpoint holds.

    The memory is that of the method at the very time and state that stand beside it; it is kept for checkpoints only.
    """

    t: float
    state: Tensor
    recorded: tuple[float, Tensor]
    outputs: int
    steps: int
    memory: Memory
    flow: Any
    depth: list[float]
    barrier: dict[str, Any] | None
    history: list[str]


# Until an output so near nothing moves that float64 could tell; methods fail at such steps (LSODA, CVODE, Radau).
_NO_TIME = 1e-100


class Run:
    """Moves a state through all output times.

    Parameters
    ----------
    depth : FixedDepth
        The flow, and the control of its grid.
    watch : Watch
    start : Tensor
        The state at points[0].
    points : list of float
        Output times.
    method : str
    control : Control
    """

    def __init__(
        self, depth: FixedDepth, watch: Watch, start: Tensor, points: list[float], method: str, control: Control
    ) -> None:
        self.depth = depth
        self.watch = watch
        self.start = start
        self.base = depth.flow
        self.points = points
        self.method = method
        self.control = control
        self.goals: Sequence[float] = ()  # more times at which a step has to end
        self.events: list[Stop] = []
        self.observe: Callable[[int, Tensor], Tensor | None] | None = None
        self.progress = Throttled(None)
        self.checkpoint: Checkpoint | None = None
        self.request = Request()
        self.times: list[float] = []
        names = (*_COLUMNS, "carried_log_sigma") if hasattr(depth.flow, "log_sigma") else _COLUMNS
        self.columns: dict[str, list[Tensor]] = {name: [] for name in names}
        self.depth_errors: list[float] = []
        self.observed: list[Tensor] = []
        self.law_modes: dict[str, list[Any]] | None = None
        self.history: list[str] = []
        self.steps = 0
        self.outputs = 0
        self.ends = array("d")  # of the steps
        self.t = points[0]
        self.state = start
        self.recorded = points[0], start  # where z was computed last
        self.stepper: Stepper | None = None
        self.barrier: Barrier | None = None
        self.memory: Memory = {}  # of the stepper that is to be made

    def whole(self) -> Trajectory:
        """The trajectory, from the start or from the checkpoint to the end."""
        saved = self.checkpoint and self.checkpoint.read()
        if saved:
            reached, position, memory = saved
            self.memory = dict(memory)
            self.ends = array("d", self.memory.pop(ENDS).tolist())
            if position["finished"]:
                return reached
            self._restore(reached, position)
        else:
            self._begin()
        ending, status = "ok", "ok"
        self._settle()
        try:
            if self.steps == 0:
                self.state = self.depth.at_start(self.state)
                self._take_flow()
                self._settle()
            self._advance()
        except Stopped as stop:
            ending, status = stop.code, str(stop)
            if ending not in EVENTS_ASKED:
                self._go_back()
                status += self._slowest(ending)
            self._last_record()
        if ending == "ok":
            ending, status = self._second_thoughts()
        elif ending in EVENTS_ASKED:
            sentence = self._out_of_reach()
            status = status if sentence is None else f"{status}; {sentence}"
        escape = None if self.barrier is None else self.barrier.verdict()
        if escape is not None:
            ending, status = "escaped", escape if status == "ok" else f"{escape}; {status}"
        result = self._trajectory(status, ending)
        if self.checkpoint is not None and ending != "checkpoint":
            finished = self.outputs == len(self.points) or ending in EVENTS_ASKED
            try:
                self._write(result, finished=finished)
            except Stopped as stop:
                return self._trajectory(str(stop), stop.code)
        return result

    def _settle(self) -> None:
        """Takes note of where the run stands; cheap, as it is done at every step."""
        memory = self._memory() if self.checkpoint is not None else {}
        self.settled = Settled(
            t=self.t,
            state=self.state,
            recorded=self.recorded,
            outputs=self.outputs,
            steps=self.steps,
            memory=memory,
            flow=self.depth.flow,
            depth=self.depth.memory(),
            barrier=None if self.barrier is None else self.barrier.memory(),
            history=self._history(),
        )
        self.watch.good = self.state

    def _go_back(self) -> None:
        """Takes the run back to where it was last settled: what a step recorded that did not end is dropped."""
        settled = self.settled
        self.t, self.state, self.recorded = settled.t, settled.state, settled.recorded
        self.outputs, self.steps = settled.outputs, settled.steps
        kept = slice(self.outputs)
        self.times, self.depth_errors, self.observed = self.times[kept], self.depth_errors[kept], self.observed[kept]
        self.columns = {name: values[kept] for name, values in self.columns.items()}
        del self.ends[self.steps :]
        self.depth.flow = self.watch.flow = settled.flow
        self.depth.resume(None, settled.depth)
        if self.barrier is not None and settled.barrier is not None:
            self.barrier.resume(settled.barrier)
        self.history, self.depth.history, self.stepper = settled.history, [], None

    def _take_flow(self) -> None:
        """Goes on with the flow on its present grid; the law of the start is that of its panel polynomials there."""
        flow = self.watch.flow = self.depth.flow
        self.origin = self.start if flow is self.base else self.base.transfer(self.start, flow.grid)
        self.law = flow.law(self.origin)

    def _begin(self) -> None:
        self._take_flow()
        try:
            self._record(self.t, self.state)
            self.watch.members = self.columns["loss"][0].shape
        except Stopped as stop:
            raise ValueError(f"state cannot be a start of this flow: {stop}") from stop
        self._watch_barrier()

    def _watch_barrier(self) -> None:
        if watched(self.depth.flow, self.start):
            self.barrier = Barrier(self.depth.flow, self.start, self.control, METHODS[self.method])

    def _restore(self, reached: Trajectory, position: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds."""
        values = moved(reached, self.start)
        self.state = values["state"]
        if _CARRIED in self.memory:
            self.state = torch.as_tensor(self.memory[_CARRIED]).to(self.start)
        self.t, self.outputs, self.steps = position["t"], position["outputs"], position["steps"]
        self.times = reached.times.tolist()[: self.outputs]
        for name in self.columns:
            self.columns[name] = list(values[name][: self.outputs])
        self.depth_errors = values["depth_error"].tolist()[: self.outputs]
        if "observed" in values:
            self.observed = list(values["observed"])[: self.outputs]
        self.watch.members = self.columns["loss"][0].shape
        self.history = list(reached.stats["history"])
        self.watch.resume(position["evaluations"], position["products"], position["seconds"])
        self.depth.resume(position["grid"], position["depth"])
        self._watch_barrier()
        if self.barrier is not None:
            self.barrier.resume(position["barrier"])
        self._take_flow()

    def _advance(self) -> None:
        end = self.points[-1]
        lookout = Lookout(self.events, self.watch, lambda: self.depth.flow)
        if self.steps == 0:
            here = Point(self.depth.flow, self.watch, self.t, self.state)
            event = lookout.at_start(here)
            if event is not None:
                raise Stopped(event.code, event.sentence(here, start=True))
        while self.outputs < len(self.points):
            if self.points[self.outputs] - self.t <= _NO_TIME:
                self._record(self.points[self.outputs], self.state)
                continue
            if self.stepper is None:
                control = self._control_of_state()
                self.stepper = METHODS[self.method](Start(self.watch, self.t, self.state, end, control, self.memory))
            stepper, goal = self.stepper, self._goal(self.stepper.t)
            if stepper.t < goal:
                before = stepper.t
                stepper.advance(goal)
                self.steps += 1
                self.ends.append(stepper.t)
                self._check_carried(stepper)
                if self.barrier is not None:
                    self.barrier.after_step(before, stepper.t, stepper.at)
                self._meet_events(lookout, before)
            self._record_until(stepper.t, stepper)
            self.t, self.state = stepper.t, stepper.state
            if self.outputs < len(self.points):
                self._look_at_depth()
            self._settle()
            self.progress(self._where)
            self._pause()
        self.progress(self._where, last=True)

    def _control_of_state(self) -> Control:
        """The tolerances of the state that the method moves, which stand for those of z."""
        tolerances = getattr(self.depth.flow, "tolerances", None)
        if tolerances is None:
            return self.control
        rtol, atol = tolerances(self.start, self.control.rtol, self.control.atol)
        return replace(self.control, rtol=rtol, atol=atol)

    def _check_carried(self, stepper: Stepper) -> None:
        """Ends the run where the coordinates of the method are finite and z is not."""
        finite = getattr(self.depth.flow, "finite", None)
        lost = None if finite is None else ~finite(stepper.state)
        if lost is not None and bool(lost.any()):
            where = f"the end-to-end map{of_members(lost)} has left the range of numbers at t = {stepper.t:.6g}"
            raise Stopped("not_finite", f"{where}: {self._why()}{advice(lost)}")

    def _given(self, state: Tensor) -> Tensor:
        """A state in the coordinates in which it was given."""
        leave = getattr(self.depth.flow, "leave", None)
        return state if leave is None else leave(state)

    def _goal(self, t: float) -> float:
        """The next time at which a step has to end."""
        goal, following = self.points[self.outputs], bisect_right(self.goals, t)
        return min(goal, self.goals[following]) if following < len(self.goals) else goal

    def _meet_events(self, lookout: Lookout, before: float) -> None:
        """Ends the run at the first event inside the last step."""
        stepper = self.stepper
        assert stepper is not None
        first = lookout.inside(stepper, before) if self.events else None
        if first is None:
            return
        at, event = first
        point = lookout.point(stepper, at)
        self._record_until(at, stepper)
        self.t, self.state = at, point.state
        raise Stopped(event.code, event.sentence(point))

    def _look_at_depth(self) -> None:
        """Moves the state to another grid where that is called for; the method starts anew there, with its step."""
        stepper = self.stepper
        assert stepper is not None
        try:
            moved_state = self.depth.after_step(self.t, self.state)
            if moved_state is None and isinstance(self.depth, AdaptiveDepth) and self.t == self.times[-1]:
                moved_state = self.depth.coarsened(self.t, self.state)
        except FAILURES as error:
            raise Stopped(
                "velocity", f"the error in depth could not be estimated at t = {self.t:.6g}: {error}"
            ) from error
        if moved_state is None:
            return
        self.state, self.stepper = moved_state, None
        self._take_flow()
        self.history += stepper.history
        self.memory = {name: value for name, value in stepper.memory().items() if name in ("h", "stiff")}

    def _pause(self) -> None:
        """Saves when it is due or a signal has come, which acts then: the run goes on if its handler returns."""
        interrupted = self.request.signal is not None
        if self.checkpoint is not None and (interrupted or self.checkpoint.due()):
            self._save()
        self.request.act()

    def _record_until(self, t: float, stepper: Stepper) -> None:
        """Records the outputs inside the last step, up to t."""
        while self.outputs < len(self.points) and self.points[self.outputs] <= t:
            point = self.points[self.outputs]
            self._record(point, stepper.at(point))

    def _record(self, t: float, state: Tensor) -> None:
        self._evaluate(t, state)
        if self.observe is not None:
            seen = self.observe(self.outputs, self._given(state))
            if seen is not None:
                self._check_observed(seen)
                self.observed.append(seen)
        self.outputs += 1

    def _check_observed(self, seen: Any) -> None:
        """Raises at once what could not be stacked at the end of a long run."""
        if not isinstance(seen, Tensor):
            raise TypeError(f"observe must return a tensor or None, got {type(seen).__name__}")
        first = self.observed[0] if self.observed else seen
        if seen.shape != first.shape or seen.dtype != first.dtype or len(self.observed) != self.outputs:
            raise ValueError(
                f"observe must return tensors of one shape and dtype at every output, got {tuple(first.shape)} "
                f"{first.dtype} before and {tuple(seen.shape)} {seen.dtype} at output {self.outputs}"
            )

    def _last_record(self) -> None:
        """Where the run ended, if that is after the last output and can be computed."""
        if self.times and self.t > self.times[-1]:
            try:
                self._evaluate(self.t, self.state)
            except Stopped:
                self.t, self.state = self.recorded

    def _evaluate(self, t: float, state: Tensor) -> None:
        """Files z, loss, drift and depth error at time t; raises Stopped unless all of them are finite."""
        flow = self.depth.flow
        try:
            z = flow.product(state)
            values = {"z": z, "loss": flow.loss(z), "drift": self._drift(state)}
            if "carried_log_sigma" in self.columns:
                values["carried_log_sigma"] = flow.log_sigma(state)
            depth_error = self.depth.at_output(state, z)
        except FAILURES as error:
            which = culprits(flow.product, FAILURES, state, self.watch.good, self.watch.members)
            raise Stopped(
                "velocity",
                f"the end-to-end map{of_members(which)} could not be computed at t = {t:.6g}: {error}{advice(which)}",
            ) from error
        for name, value in zip(("end-to-end map", "loss", "law", "logarithm of σ"), values.values(), strict=False):
            if not all_finite(value):
                which = not_finite(value, values["loss"].shape)
                raise Stopped(
                    "not_finite",
                    f"the {name}{of_members(which)} is not finite at t = {t:.6g}: {self._why()}{advice(which)}",
                )
        self.times.append(t)
        self.depth_errors.append(depth_error)
        for name, value in values.items():
            self.columns[name].append(value)
        self.recorded = t, state

    def _drift(self, state: Tensor) -> Tensor:
        """The drift of the law; a flow that knows what its grid can hold says how much of a change is none."""
        change = getattr(self.depth.flow, "law_change", None)
        if change is None:
            return drift(self.depth.flow.law(state), self.law)
        found: LawChange = change(state, self.origin)
        self.law_modes = {"drift": found.modes.tolist(), "bound": found.bounds.tolist()}
        return found.drift

    def _why(self) -> str:
        return "the flow blew up, or its step was too large" if self.steps else "it is so from the start"

    def _second_thoughts(self) -> tuple[str, str]:
        """What is to be said of a run that reached its last time."""
        sentence = self.depth.verdict(self.columns["z"][-1])
        if sentence is not None:
            return "depth", sentence
        sentence = self._out_of_reach()
        return ("ok", "ok") if sentence is None else ("unreachable", sentence)

    def _out_of_reach(self) -> str | None:
        """See out_of_reach."""
        wanted = [event.bound for event in self.events if event.code == "loss"]
        return out_of_reach(self.depth.flow, self.state, self.t, self.columns, self.points[0], wanted)

    def _slowest(self, ending: str) -> str:
        """Which member of a batch a step size that vanished, or an iteration that failed, is likely due to."""
        members, state = self.watch.members, self.state
        if ending not in ("underflow", "implicit") or not members or state.shape[: len(members)] != members:
            return ""
        try:
            velocity = self.depth.flow.velocity(state)
        except FAILURES:
            return ""
        rate = (velocity.abs() / (self.control.atol + self.control.rtol * state.abs())).reshape(*members, -1).amax(-1)
        which = rate == rate.max()
        name = of_members(which).removeprefix(" of ")
        return f"; at t = {self.t:.6g} {name} moves fastest{advice(which)}" if name else ""

    def _where(self) -> Progress:
        first, end = self.points[0], self.points[-1]
        try:
            loss = float(self.depth.flow.loss(self.depth.flow.product(self.state)).max())
        except FAILURES:  # between outputs nobody needs it
            loss = float("nan")
        return Progress(
            t=self.t,
            end=end,
            fraction=min(1.0, (self.t - first) / (end - first)) if end > first else 1.0,
            loss=loss,
            step=self.stepper.h if self.stepper is not None else 0.0,
            evaluations=self.watch.evaluations,
            seconds=self.watch.seconds,
        )

    def _save(self) -> None:
        status = f"the run had reached t = {self.t:.6g} when this was saved; it can be resumed"
        self._write(self._trajectory(status, "interrupted"), finished=False)

    def _write(self, reached: Trajectory, *, finished: bool) -> None:
        """Saves where the run was last settled, whatever has happened since; `reached` may hold one more record."""
        assert self.checkpoint is not None
        settled = self.settled
        if not finished:
            reached = replace(reached, state=self._given(settled.state))
        memory = {**settled.memory, ENDS: np.array(self.ends)}
        self.checkpoint.write(reached, self._position(settled, finished=finished), memory)

    def _memory(self) -> Memory:
        memory = self.memory if self.stepper is None else self.stepper.memory()
        return {**memory, _CARRIED: self.state} if hasattr(self.depth.flow, "leave") else memory

    def _history(self) -> list[str]:
        return self.history + self.depth.history + (self.stepper.history if self.stepper else [])

    def _position(self, settled: Settled, *, finished: bool) -> dict[str, Any]:
        grid = getattr(settled.flow, "grid", None)
        return {
            "finished": finished,
            "t": settled.t,
            "outputs": settled.outputs,
            "steps": settled.steps,
            "evaluations": self.watch.evaluations,
            "products": self.watch.products,
            "seconds": self.watch.seconds,
            "grid": grid and [grid.panels, grid.order],
            "depth": settled.depth,
            "barrier": settled.barrier,
        }

    def _trajectory(self, status: str, ending: str) -> Trajectory:
        grid = getattr(self.depth.flow, "grid", None)
        stats = {
            "evaluations": self.watch.evaluations,
            "products": self.watch.products,
            "seconds": self.watch.seconds,
            "steps": self.steps,
            "method": self.method,
            "rtol": self.control.rtol,
            "atol": self.control.atol,
            "history": self._history(),
            "grid": grid and [grid.panels, grid.order],
            "law_modes": self.law_modes,
        }
        columns = {name: torch.stack(values) for name, values in self.columns.items()}
        device = columns["loss"].device
        times, depth_errors = (
            torch.tensor(values, dtype=torch.float64, device=device) for values in (self.times, self.depth_errors)
        )
        return Trajectory(
            times=times,
            **columns,
            state=self._given(self.state),
            stats=stats,
            status=status,
            ending=ending,
            depth_error=depth_errors,
            observed=torch.stack(self.observed) if self.observed else None,
        )
