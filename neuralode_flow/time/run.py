"""One run of a method through its output times: steps, and what is looked at after each."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..checks import of_members
from ..flows.capabilities import ChoosesTolerances, KnowsFinite, offers
from ..interrupt import Request
from .barrier import Barrier, barrier_of
from .base import FAILURES, METHODS, Control, Memory, Start, Stepper
from .byformula import in_motion
from .checkpoint import Checkpoint, Saved
from .dense import Dense
from .endings import EVENTS_ASKED, Stopped, UsedUp
from .events import Stop
from .lookout import Happened, Lookout
from .members import advice
from .progress import Progress, Throttled
from .rank import Risen, risen
from .reach import OutOfReach, out_of_reach
from .records import Observer, Records, given
from .resolution import AdaptiveGrid, FixedGrid
from .snapshot import Beginning, Snapshot, panels_and_order, taken_up
from .trajectory import Trajectory
from .watch import Budget, Spent, Watch

# Until an output so near nothing moves that float64 could tell; methods fail at such steps (LSODA, CVODE, Radau).
_NO_TIME = 1e-100


@dataclass(frozen=True, eq=False)
class Task:
    """What a run is to do.

    Attributes
    ----------
    start : Tensor
        The state at points[0].
    points : list of float
        Output times.
    method : str
    control : Control
    goals : sequence of float
        More times at which a step has to end.
    events : sequence of Stop
    observe : callable or None
    dense : bool
        Whether z is kept inside the steps too.
    checks : bool
        Whether the drift of the law and the error in depth are measured.
    """

    start: Tensor
    points: list[float]
    method: str
    control: Control
    goals: Sequence[float] = ()
    events: Sequence[Stop] = ()
    observe: Observer | None = None
    dense: bool = False
    checks: bool = True


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Who is told of a run on its way: a file, signals that wait for it, a reader of its progress."""

    checkpoint: Checkpoint | None
    request: Request
    progress: Throttled


def carried_out(
    task: Task, grid: FixedGrid, budget: Budget, around: Surroundings, kind: type[Run]
) -> tuple[Trajectory, list[float]]:
    """The trajectory, from the start or from the checkpoint to the end, and when the steps ended."""
    saved = around.checkpoint and around.checkpoint.read()
    ended = saved and (kind.ended(saved.reached) or len(saved.reached.times) >= len(task.points))
    if saved and saved.position["finished"] and ended:
        return saved.reached, saved.ends
    run = resumed(task, grid, budget, around, kind, saved) if saved else begun(task, grid, budget, around, kind)
    return run.whole(), list(run.ends)


def begun(task: Task, grid: FixedGrid, budget: Budget, around: Surroundings, kind: type[Run]) -> Run:
    """A run at its start, which is recorded; ValueError where z cannot be computed there."""
    t, start = task.points[0], task.start
    records = Records(grid, start, t, task.observe, checks=task.checks)
    try:
        records.output(t, start, start)
    except Stopped as stop:
        raise ValueError(f"state cannot be a start of this flow: {stop}") from stop
    barrier = barrier_of(grid.flow, start, task.control, METHODS[task.method])
    watch = Watch(grid, records.members, start, budget, Spent())
    return kind(task, around, records, barrier, watch, Beginning(t, start, {}, [], [], (t, start)))


def resumed(task: Task, grid: FixedGrid, budget: Budget, around: Surroundings, kind: type[Run], saved: Saved) -> Run:
    """A run where a checkpoint has left it."""
    start, position = task.start, saved.position
    grid.resume(position["grid"], position["depth"])
    records = Records(grid, start, task.points[0], task.observe, checks=task.checks)
    records.take_up(saved.reached, position["outputs"])
    barrier = barrier_of(grid.flow, start, task.control, METHODS[task.method])
    if barrier is not None:
        barrier.resume(position["barrier"])
    here = taken_up(saved, start)
    records.last = here.last
    spent = Spent(position["evaluations"], position["products"], position["seconds"])
    run = kind(task, around, records, barrier, Watch(grid, records.members, here.state, budget, spent), here)
    if run.dense is not None:
        run.dense.take_up(saved.reached, position["steps"])
    return run


class Run:
    """Moves a state through all output times.

    Parameters
    ----------
    task : Task
    around : Surroundings
    records : Records
        With the start, or what a checkpoint holds.
    barrier : Barrier or None
    watch : Watch
        It has the flow.
    here : Beginning
    """

    grid_kind: ClassVar[type[FixedGrid]] = FixedGrid

    def __init__(
        self, task: Task, around: Surroundings, records: Records, barrier: Barrier | None, watch: Watch, here: Beginning
    ) -> None:
        self.task, self.around = task, around
        self.records, self.barrier, self.watch, self.grid = records, barrier, watch, watch.grid
        self.lookout = Lookout(task.events, watch, watch.grid)
        self.ends = array("d", here.ends)  # of the steps
        self.dense = Dense(task.points[0]) if task.dense else None
        self.history = here.history  # of the methods before the present one
        self.risen: Risen | None = None  # known at the end
        self.stepper: Stepper | None = None  # none yet, or none on the present grid
        self.settled = self._snapshot(here.t, here.state, here.memory)

    @staticmethod
    def ended(reached: Trajectory) -> bool:
        """Whether a run has come to an end before its last time that was asked for."""
        return reached.ending in EVENTS_ASKED

    def whole(self) -> Trajectory:
        """The trajectory, up to the end of the run."""
        try:
            if not self.ends:
                self._start()
            while self.records.outputs < len(self.task.points):
                self._step()
                self.around.progress(self._where)
                self._pause()
            self.around.progress(self._where, last=True)
            here, (ending, status) = self.settled, self._second_thoughts()
        except Stopped as stop:
            here, ending, status = self._stopped(stop)
        escape = self._escape(here)
        if escape is not None:
            ending, status = "escaped", escape if status == "ok" else f"{escape}; {status}"
        result = self._trajectory(here, status, ending)
        if ending != "checkpoint":
            finished = self.records.outputs == len(self.task.points) or ending in EVENTS_ASKED
            try:
                self._save(result, finished=finished)
            except Stopped as stop:
                return self._trajectory(here, str(stop), stop.code)
        return result

    def _escape(self, here: Snapshot) -> str | None:
        """What is to be said of a z that has come across det z = 0, or off it, where the exact flow does not."""
        crossed = None if self.barrier is None else self.barrier.verdict()
        self.risen = risen(self.grid.flow, self.task.start, here.state) if crossed is None else None
        return crossed if self.risen is None else self.risen.sentence

    def _start(self) -> None:
        """What comes before the first step: a grid that resolves the start, and events that have happened there."""
        here = self.settled
        state = self.grid.at_start(here.state)
        if state is not here.state:
            self.records.change_grid()
        self._settle(here.t, state, here.memory)
        self.lookout.at_start(here.t, state)

    def _step(self) -> None:
        """One step of the method, with all that is inside it."""
        t, state, memory = self.settled.t, self.settled.state, self.settled.memory
        if self._outputs_here():
            return
        points, records = self.task.points, self.records
        stepper = self.stepper = self.stepper or self._method(t, state, memory)
        goal = self._goal(stepper.t)
        if stepper.t < goal:
            stepper.advance(goal)
            self.ends.append(stepper.t)
            self._look_inside(stepper, t)
            if self.dense is not None:
                self.dense.keep(self.grid.flow, stepper, stepper.t)
        records.until(stepper.t, points, stepper, self.watch.good)
        moved = self._moved(stepper) if records.outputs < len(points) else None
        if moved is None:
            self._settle(stepper.t, stepper.state, stepper.memory())
        else:  # the method starts anew on another grid, with its step
            self.stepper = None
            self.history = self.history + stepper.history
            kept = {name: value for name, value in stepper.memory().items() if name in ("h", "stiff")}
            self._settle(stepper.t, moved, kept)

    def _outputs_here(self) -> bool:
        """Records the outputs at which the run stands; whether they were the last."""
        points, records = self.task.points, self.records
        while records.outputs < len(points) and points[records.outputs] - self.settled.t <= _NO_TIME:
            records.output(points[records.outputs], self.settled.state, self.watch.good)
        return records.outputs == len(points)

    def _method(self, t: float, state: Tensor, memory: Memory) -> Stepper:
        """The method in motion; its tolerances are those of the state that it moves, which stand for those of z."""
        return in_motion(METHODS[self.task.method], self._beginning(t, state, memory))

    def _beginning(self, t: float, state: Tensor, memory: Memory) -> Start:
        task, flow, control = self.task, self.grid.flow, self.task.control
        if offers(flow, ChoosesTolerances):
            rtol, atol = flow.tolerances(task.start, control.rtol, control.atol)
            control = replace(control, rtol=rtol, atol=atol)
        return Start(self.watch, t, state, task.points[-1], control, memory)

    def _goal(self, t: float) -> float:
        """The next time at which a step has to end."""
        goal, goals = self.task.points[self.records.outputs], self.task.goals
        following = bisect_right(goals, t)
        return min(goal, goals[following]) if following < len(goals) else goal

    def _look_inside(self, stepper: Stepper, before: float) -> None:
        """Ends the run where z has left the range of numbers, or at the first event inside the last step."""
        flow = self.grid.flow
        finite = flow.finite(stepper.state) if offers(flow, KnowsFinite) else None
        if finite is not None and not bool(finite.all()):
            lost = ~finite
            where = f"the end-to-end map{of_members(lost)} has left the range of numbers at t = {stepper.t:.6g}"
            raise Stopped("not_finite", f"{where}: the flow blew up, or its step was too large{advice(lost)}")
        if self.barrier is not None:
            self.barrier.after_step(before, stepper.t, stepper.at)
        first = self.lookout.inside(stepper, before)
        if first is not None:
            at, event = first
            point = self.lookout.point(stepper, at)
            self.records.until(at, self.task.points, stepper, self.watch.good)
            if self.dense is not None:
                self.dense.keep(flow, stepper, at)
            raise Happened(event, point)

    def _moved(self, stepper: Stepper) -> Tensor | None:
        """The state on another grid, where that is called for."""
        t, state = stepper.t, stepper.state
        try:
            moved = self.grid.after_step(t, state)
            if moved is None and isinstance(self.grid, AdaptiveGrid) and t == self.records.times[-1]:
                moved = self.grid.coarsened(t, state)
        except FAILURES as error:
            raise Stopped("velocity", f"the error in depth could not be estimated at t = {t:.6g}: {error}") from error
        if moved is not None:
            self.records.change_grid()
        return moved

    def _pause(self) -> None:
        """Saves when it is due or a signal has come, which acts then: the run goes on if its handler returns."""
        checkpoint, request = self.around.checkpoint, self.around.request
        if checkpoint is not None and (request.signal is not None or checkpoint.due()):
            status = f"the run had reached t = {self.settled.t:.6g} when this was saved; it can be resumed"
            self._save(self._trajectory(self.settled, status, "interrupted"), finished=False)
        request.act()

    def _save(self, reached: Trajectory, *, finished: bool) -> None:
        """Saves where the run was last settled, whatever has happened since."""
        if self.around.checkpoint is not None:
            self.around.checkpoint.write(self.settled.saved(reached, self.watch, list(self.ends), finished=finished))

    def _snapshot(self, t: float, state: Tensor, memory: Memory) -> Snapshot:
        history = self.history + self.grid.history + (self.stepper.history if self.stepper else [])
        return Snapshot(
            t=t,
            state=state,
            memory=memory,
            outputs=self.records.outputs,
            steps=len(self.ends),
            last=self.records.last,
            depth=self.grid.memory(),
            barrier=None if self.barrier is None else self.barrier.memory(),
            history=history,
        )

    def _settle(self, t: float, state: Tensor, memory: Memory) -> None:
        """Takes note of where the run stands; cheap, as it is done at every step."""
        self.settled = self._snapshot(t, state, memory)
        self.watch.good = state

    def _stopped(self, stop: Stopped) -> tuple[Snapshot, str, str]:
        """Where a run that was stopped ends, and why."""
        status = str(stop)
        if isinstance(stop, Happened):
            here = self._snapshot(stop.t, stop.state, {})
        else:
            self._go_back()
            here = self.settled
            if stop.code in ("underflow", "implicit"):
                status += self.watch.slowest(here.t, here.state, self.task.control)
        if here.t > self.records.times[-1]:
            try:
                self.records.add(here.t, here.state, self.watch.good)
            except Stopped:
                here = replace(here, t=here.last[0], state=here.last[1])
        if isinstance(stop, UsedUp):
            status = stop.at(here.t)
        beyond = self._out_of_reach(here) if isinstance(stop, Happened) else None
        return here, stop.code, status if beyond is None else f"{status}; {beyond.sentence}"

    def _go_back(self) -> None:
        """Takes the run back to where it was last settled: what a step recorded that did not end is dropped."""
        settled = self.settled
        self.records.drop(settled.outputs, settled.last)
        del self.ends[settled.steps :]
        if self.dense is not None:
            self.dense.drop(settled.steps)
        self.grid.resume(None, settled.depth)
        if self.barrier is not None and settled.barrier is not None:
            self.barrier.go_back(settled.barrier)

    def _second_thoughts(self) -> tuple[str, str]:
        """Ending and status of a run that reached its last time."""
        sentence = self.grid.verdict(self.records.columns["z"][-1])
        if sentence is not None:
            return "depth", sentence
        beyond = self._out_of_reach(self.settled)
        return ("ok", "ok") if beyond is None else ("unreachable", beyond.sentence)

    def _out_of_reach(self, here: Snapshot) -> OutOfReach | None:
        """See out_of_reach."""
        wanted = [event.bound for event in self.task.events if event.code == "loss"]
        return out_of_reach(self.grid.flow, here.state, here.t, self.records.columns, self.task.points[0], wanted)

    def _where(self) -> Progress:
        here, flow = self.settled, self.grid.flow
        first, end = self.task.points[0], self.task.points[-1]
        try:
            loss = float(flow.loss(flow.product(here.state)).max())
        except FAILURES:  # between outputs nobody needs it
            loss = float("nan")
        return Progress(
            t=here.t,
            end=end,
            fraction=min(1.0, (here.t - first) / (end - first)) if end > first else 1.0,
            loss=loss,
            step=self.stepper.h if self.stepper is not None else 0.0,
            evaluations=self.watch.evaluations,
            seconds=self.watch.seconds,
        )

    def _trajectory(self, here: Snapshot, status: str, ending: str) -> Trajectory:
        task, flow = self.task, self.grid.flow
        stats = {
            "evaluations": self.watch.evaluations,
            "products": self.watch.products,
            "seconds": self.watch.seconds,
            "steps": here.steps,
            "method": task.method,
            "rtol": task.control.rtol,
            "atol": task.control.atol,
            "history": here.history,
            "grid": panels_and_order(flow),
            "law_modes": self.records.law_modes,
        }
        columns = self.records.tensors()
        if self.dense is not None:
            columns |= self.dense.tensors(columns["z"])
        state = given(flow, here.state)
        # That of a run without a step is still the caller's, who may write into it.
        state = state if here.steps else state.clone()
        return Trajectory(**columns, state=state, stats=stats, status=status, ending=ending)
