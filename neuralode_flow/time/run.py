"""One run of a method through its output times: steps, events, records, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from ..checks import all_finite
from ..laws import drift
from .base import FAILURES, METHODS, Control, Memory, Start, Stepper, Watch
from .checkpoint import Checkpoint, moved
from .depth import AdaptiveDepth, FixedDepth
from .endings import EVENTS_ASKED, Stopped
from .events import Point, Stop
from .interrupt import Request
from .progress import Progress, Throttled
from .trajectory import Trajectory

_COLUMNS = ("z", "loss", "drift")

# A loss within this part of its whole way from the least value that is left, at a z whose smallest singular value is
# this part of its largest, counts as having tended to it.
_ARRIVED, _SINGULAR = 0.03, 0.04

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
        self.events: list[Stop] = []
        self.observe: Callable[[int, Tensor], Tensor | None] | None = None
        self.progress = Throttled(None)
        self.checkpoint: Checkpoint | None = None
        self.request = Request()
        self.times: list[float] = []
        self.columns: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}
        self.depth_errors: list[float] = []
        self.observed: list[Tensor] = []
        self.history: list[str] = []
        self.steps = 0
        self.outputs = 0
        self.t = points[0]
        self.state = start
        self.stepper: Stepper | None = None
        self.memory: Memory = {}  # of the stepper that is to be made

    def whole(self) -> Trajectory:
        """The trajectory, from the start or from the checkpoint to the end."""
        saved = self.checkpoint and self.checkpoint.read()
        if saved:
            reached, position, memory = saved
            if position["finished"]:
                return reached
            self._restore(reached, position)
            self.memory = memory
        else:
            self._begin()
        ending, status = "ok", "ok"
        try:
            if not saved:
                self.state = self.depth.at_start(self.start)
                self._take_flow()
            self._advance()
        except Stopped as stop:
            ending, status = stop.code, str(stop)
            self._last_record()
        if ending == "interrupted":
            return self._trajectory(status, ending)
        if ending == "ok":
            ending, status = self._second_thoughts()
        elif ending in EVENTS_ASKED:
            sentence = self._out_of_reach()
            status = status if sentence is None else f"{status}; {sentence}"
        result = self._trajectory(status, ending)
        if self.checkpoint is not None and ending != "checkpoint":
            try:
                self.checkpoint.write(
                    result, self._position(finished=ending not in ("evaluations", "seconds")), self._memory()
                )
            except Stopped as stop:
                return self._trajectory(str(stop), stop.code)
        return result

    def _take_flow(self) -> None:
        """Goes on with the flow on its present grid; the law of the start is that of its panel polynomials there."""
        flow = self.watch.flow = self.depth.flow
        start = self.start if flow is self.base else self.base.transfer(self.start, flow.grid)
        self.law = flow.law(start)

    def _begin(self) -> None:
        self._take_flow()
        try:
            self._record(self.t, self.state)
        except Stopped as stop:
            raise ValueError(f"state cannot be a start of this flow: {stop}") from stop

    def _restore(self, reached: Trajectory, position: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds."""
        values = moved(reached, self.start)
        self.state = values["state"]
        self.t, self.outputs, self.steps = position["t"], position["outputs"], position["steps"]
        self.times = reached.times.tolist()[: self.outputs]
        for name in _COLUMNS:
            self.columns[name] = list(values[name][: self.outputs])
        self.depth_errors = values["depth_error"].tolist()[: self.outputs]
        if "observed" in values:
            self.observed = list(values["observed"])
        self.history = list(reached.stats["history"])
        self.watch.resume(position["evaluations"], position["products"], position["seconds"])
        self.depth.resume(position["grid"], position["depth"])
        self._take_flow()

    def _advance(self) -> None:
        end = self.points[-1]
        while self.outputs < len(self.points):
            if self.points[self.outputs] - self.t <= _NO_TIME:
                self._record(self.points[self.outputs], self.state)
                continue
            if self.stepper is None:
                self.stepper = METHODS[self.method](
                    Start(self.watch, self.t, self.state, end, self.control, self.memory)
                )
            stepper, goal = self.stepper, self.points[self.outputs]
            if stepper.t < goal:
                before = stepper.t
                stepper.advance(goal)
                self.steps += 1
                self._meet_events(before)
            self._record_until(stepper.t, stepper)
            self.t, self.state = stepper.t, stepper.state
            self._look_at_depth()
            self.progress(self._where)
            self._pause()
        self.progress(self._where, last=True)

    def _meet_events(self, before: float) -> None:
        """Ends the run at the first event inside the last step."""
        if not self.events:
            return
        stepper = self.stepper
        assert stepper is not None
        flow = self.depth.flow
        happened = []
        for event in self.events:

            def falls(t: float, event: Stop = event) -> float:
                try:
                    return event.falls(Point(flow, self.watch, t, stepper.at(t)))
                except FAILURES as error:
                    raise Stopped("velocity", f"an event could not be computed at t = {t:.6g}: {error}") from error

            if falls(stepper.t) <= 0:
                span = stepper.t - before
                at = before
                if falls(before) > 0:
                    at = brentq(falls, before, stepper.t, xtol=1e-12 * span, rtol=1e-12)
                # The far side of the root, where the event has happened; an event that jumps up and down may need more.
                beyond = 1e-12 * span
                while falls(at) > 0:
                    at, beyond = min(stepper.t, at + beyond), 2 * beyond
                happened.append((at, event))
        if happened:
            at, event = min(happened, key=lambda pair: pair[0])
            self._record_until(at, stepper)
            self.t, self.state = at, stepper.at(at)
            raise Stopped(event.code, event.sentence(at))

    def _look_at_depth(self) -> None:
        """Moves the state to another grid where that is called for; the method starts anew there, with its step."""
        stepper = self.stepper
        assert stepper is not None
        moved_state = self.depth.after_step(self.t, self.state)
        if moved_state is None and isinstance(self.depth, AdaptiveDepth) and self.t == self.times[-1] < self.points[-1]:
            moved_state = self.depth.coarsened(self.t, self.state)
        if moved_state is None:
            return
        self.state, self.stepper = moved_state, None
        self._take_flow()
        self.history += stepper.history
        self.memory = {name: value for name, value in stepper.memory().items() if name in ("h", "stiff")}

    def _pause(self) -> None:
        """Saves when it is due, and ends when a signal has come."""
        interrupted = self.request.signal is not None
        if self.checkpoint is not None and (interrupted or self.checkpoint.due()):
            self._save(self._memory())
        if interrupted:
            raise Stopped("interrupted", f"the run was interrupted at t = {self.t:.6g}")

    def _record_until(self, t: float, stepper: Stepper) -> None:
        """Records the outputs inside the last step, up to t."""
        while self.outputs < len(self.points) and self.points[self.outputs] <= t:
            point = self.points[self.outputs]
            self._record(point, stepper.at(point))

    def _record(self, t: float, state: Tensor) -> None:
        self._evaluate(t, state)
        if self.observe is not None:
            seen = self.observe(self.outputs, state)
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
                self.t = self.times[-1]

    def _evaluate(self, t: float, state: Tensor) -> None:
        """Files z, loss, drift and depth error at time t; raises Stopped unless all of them are finite."""
        flow = self.depth.flow
        try:
            z = flow.product(state)
            values = {"z": z, "loss": flow.loss(z), "drift": drift(flow.law(state), self.law)}
            depth_error = self.depth.at_output(state, z)
        except FAILURES as error:
            raise Stopped("velocity", f"the end-to-end map could not be computed at t = {t:.6g}: {error}") from error
        for name, value in zip(("end-to-end map", "loss", "law"), values.values(), strict=True):
            if not all_finite(value):
                raise Stopped(
                    "not_finite",
                    f"the {name} is not finite at t = {t:.6g}: {self._why()}",
                )
        self.times.append(t)
        self.depth_errors.append(depth_error)
        for name, value in values.items():
            self.columns[name].append(value)

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
        """The sentence for a target with det < 0, once the loss has tended to the least value that is left."""
        flow = self.depth.flow
        boundary = getattr(flow.loss, "boundary", lambda: None)()
        if boundary is None or not getattr(flow, "keeps_orientation", False):
            return None
        first, last = self.columns["loss"][0], self.columns["loss"][-1]
        left = last - boundary
        wanted = [event.bound for event in self.events if event.code == "loss"]
        sigma = torch.linalg.svdvals(self.columns["z"][-1])
        arrived = (left <= _ARRIVED * (first - boundary)) & (sigma[..., -1] <= _SINGULAR * sigma[..., 0])
        gone = arrived | (boundary > max(wanted, default=torch.inf))
        if not bool(gone.any()):
            return None
        least = float(torch.where(gone, boundary.broadcast_to(gone.shape), torch.inf).min())
        return (
            f"the target has det < 0, which a flow that keeps det > 0 cannot reach: the loss tends to {least:.6g}, "
            f"its least value on the boundary det = 0 (it is {float(last.min()):.6g} at t = {self.t:.6g})"
        )

    def _where(self) -> Progress:
        first, end = self.points[0], self.points[-1]
        return Progress(
            t=self.t,
            end=end,
            fraction=min(1.0, (self.t - first) / (end - first)) if end > first else 1.0,
            loss=float(self.depth.flow.loss(self.depth.flow.product(self.state)).max()),
            step=self.stepper.h if self.stepper is not None else 0.0,
            evaluations=self.watch.evaluations,
            seconds=self.watch.seconds,
        )

    def _save(self, memory: Memory) -> None:
        if self.checkpoint is not None:
            status = f"the run had reached t = {self.t:.6g} when this was saved; it can be resumed"
            self.checkpoint.write(self._trajectory(status, "interrupted"), self._position(finished=False), memory)

    def _memory(self) -> Memory:
        return self.memory if self.stepper is None else self.stepper.memory()

    def _position(self, *, finished: bool) -> dict[str, Any]:
        grid = getattr(self.depth.flow, "grid", None)
        return {
            "finished": finished,
            "t": self.t,
            "outputs": self.outputs,
            "steps": self.steps,
            "evaluations": self.watch.evaluations,
            "products": self.watch.products,
            "seconds": self.watch.seconds,
            "grid": grid and [grid.panels, grid.order],
            "depth": self.depth.memory(),
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
            "history": self.history + self.depth.history + (self.stepper.history if self.stepper else []),
            "grid": grid and [grid.panels, grid.order],
        }
        columns = {name: torch.stack(values) for name, values in self.columns.items()}
        device = columns["loss"].device
        times, depth_errors = (
            torch.tensor(values, dtype=torch.float64, device=device) for values in (self.times, self.depth_errors)
        )
        return Trajectory(
            times=times,
            **columns,
            state=self.state,
            stats=stats,
            status=status,
            ending=ending,
            depth_error=depth_errors,
            observed=torch.stack(self.observed) if self.observed else None,
        )
