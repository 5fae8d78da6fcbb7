"""A run of a batch whose members take steps, meet events and end each for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..checks import of_members
from ..flows.base import restricted
from ..flows.capabilities import KnowsFinite, offers
from ..registry import did_you_mean
from .base import FAILURES, METHODS, own_steps
from .endings import ENDINGS, EVENTS_ASKED, Stopped
from .lookout import Lookout
from .members import culprits, not_finite
from .ownsteps import OwnSteps
from .reach import OutOfReach
from .resolution import UNFIT, FixedGrid, GridOfMembers
from .run import Run
from .snapshot import Snapshot
from .trajectory import Trajectory
from .watch import Spent, Watch

CONTROLS = ("shared", "member")

_TAKEN = 8  # members at most that are taken out of the batch at once, to be looked at


def check_own_steps(control: Any, method: str, **options: bool) -> None:
    """Raises ValueError unless it is a name of CONTROLS, and the method and the options go with it."""
    if control not in CONTROLS:
        hint = did_you_mean(str(control), CONTROLS)
        raise ValueError(f"control must be one of {', '.join(map(repr, CONTROLS))}, got {control!r}{hint}")
    if control == "shared":
        return
    if own_steps(METHODS[method]) is None:
        able = ", ".join(name for name in METHODS if own_steps(METHODS[name]) is not None)
        raise ValueError(
            f"control='member' is for methods with steps of a member's own, {able}, and {method} has none: take one of "
            f"them, or integrate stiff members one by one"
        )
    for name, on in options.items():
        if on:
            raise ValueError(
                f"{name}=True goes with the shared steps of control='shared': leave it out, or integrate members one "
                f"by one"
            )


def check_apart(flow: Any, start: Tensor, *, singly: bool) -> bool:
    """Whether there are members; ValueError where they cannot be taken out of the batch, for events one `singly`."""
    try:
        values = flow.loss(flow.product(start)).clone()  # it may show where the flow has its z
        if not values.ndim:
            return False
        other = _other(flow, start, values, singly)
    except FAILURES:  # the run tells of them
        return True
    if other:
        raise ValueError(
            f"control='member' takes members out of the batch, and {type(flow.loss).__name__} in {type(flow).__name__} "
            f"has numbers of their own for them: {other}; give the loss select(members, index), which makes that of "
            f"some of them, or use control='shared'"
        )
    return True


def _other(flow: Any, start: Tensor, values: Tensor, singly: bool) -> str:
    """What of members with such losses differs when they are taken out, the last and some; "" where nothing does."""
    members = values.shape
    if start.shape[: len(members)] != members:
        return "the state has none of their axes"
    number, axes = members.numel(), len(members) - 1
    states, device = start.flatten(0, axes), start.device
    # A copy: the flow may put its next velocity where this one is.
    whole = flow.velocity(start).flatten(0, axes).clone()
    everyone = torch.arange(number, device=device)
    # Not all in a row: by the first place alone, or the number, these could not be found.
    some = everyone[everyone != 1][:: -(-number // _TAKEN)]
    taken = [everyone[-1:], *([some] if number > 1 else [])]
    noise = 0.0
    if singly:  # where large numbers cancel, a loss is as sure as what the last digits of z make of it
        nearby = flow.product(start) * (1 + 4 * torch.finfo(start.dtype).eps)
        noise = float((flow.loss(nearby) - values).abs().max())
    for index in (*taken, everyone[-1]) if singly else taken:
        named = f"the index {index.tolist()}" if index.numel() == 1 else "an index of several"
        try:
            own = restricted(flow, members, index)
            pairs = [("velocity", own.velocity(states[index]).clone(), whole[index], 0.0)]
            if singly:  # events look at it
                pairs.append(("loss", own.loss(own.product(states[index])), values.flatten()[index], noise))
        except FAILURES:
            raise
        except UNFIT as error:
            return f"with {named} there is no velocity or loss ({error})"
        for name, found, known, beside in pairs:
            if found.shape != known.shape:
                return f"with {named} the {name} has the shape {tuple(found.shape)} in place of {tuple(known.shape)}"
            if _apart(found, known, index.numel(), beside):
                return f"with {named} the {name} is another"
    return ""


def _apart(found: Tensor, known: Tensor, number: int, noise: float) -> bool:
    """Whether numbers of a member differ by more than round-off; of those that are NaN nothing is said."""
    eps = torch.finfo(known.dtype).eps
    gap, size = (one.reshape(number, -1).abs().amax(-1) for one in (found - known, known))
    return bool((gap > eps**0.5 * size + 100 * (eps * size.max().clamp(min=1.0) + noise)).any())


class Apart(Run):
    """A run whose members are each where they would be alone; a round, in which each tries a step, is a step of it."""

    grid_kind = GridOfMembers

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._lookouts: dict[int, Lookout] = {}  # wanted for events alone
        self._unfinished = "interrupted"  # how members end that have not come to the last time
        self._beyond: OutOfReach | None = None

    @staticmethod
    def ended(reached: Trajectory) -> bool:
        return all(ending in EVENTS_ASKED for ending in reached.stats["members"]["endings"])

    def _start(self) -> None:
        """The events that have happened at the start end their members there, before any work."""
        own, states = self._begun(), self.settled.state.flatten(0, len(self.records.members) - 1)
        if self.barrier is not None:
            self._watch_of(0)  # that it can be had is seen before any work
        for row in range(len(states)) if self.task.events and not self.settled.memory else ():
            lookout = self._lookout(row)
            try:
                lookout.at_start(self.settled.t, states[row])
            except Stopped as stop:
                own.end(np.array([row]), stop.code)
            own.evaluations[row] = cast(Watch, lookout.velocity).evaluations
        self._settle(own.t, own.state, own.memory())

    def _begun(self) -> OwnSteps:
        """The method in motion."""
        if self.stepper is None:
            here, task = self.settled, self.task
            start = self._beginning(here.t, here.state, here.memory)
            formula = cast(Any, own_steps(METHODS[task.method]))(start.control).on(start.state.device)
            own = OwnSteps(self.watch, start, task.method, formula, self.records.members)
            self.stepper = cast(Any, own)
        return cast(OwnSteps, self.stepper)

    def _step(self) -> None:
        own = self._begun()
        if not len(own.running()):
            raise Stopped(*self._said())
        if self._outputs_here():
            return
        before, goal = own.t, self._goal(own.t)
        own.advance(goal, by_steps=bool(self.task.events), sign=self._sign())
        self._look_at(own)
        self._record(own)
        if own.t > before:
            self.ends.append(own.t)
        self._settle(own.t, own.state, own.memory())

    def _sign(self) -> np.ndarray | None:
        """The sign of det z that the barrier watches over."""
        return None if self.barrier is None else self.barrier.sign.reshape(-1).cpu().numpy()

    def _record(self, own: OwnSteps) -> None:
        """Records the outputs that all that run have come to, without those whose z cannot be recorded."""
        try:
            self._record_all(own)
        except Stopped:
            if not self._put_back(own):
                raise
            self._record_all(own)

    def _record_all(self, own: OwnSteps) -> None:
        if len(own.running()):
            self.records.until(own.t, self.task.points, cast(Any, own), self.watch.good)

    def _look_at(self, own: OwnSteps) -> None:
        """Ends the members that left the range of numbers, or met an event, in the step that they took."""
        flow, took = self.grid.flow, own.took
        if offers(flow, KnowsFinite):
            lost = ~flow.finite(own.state).reshape(len(own.here.t), -1).all(-1).cpu().numpy()
            own.take_back(took[lost[took]], "not_finite")
        if self.barrier is not None:
            now = torch.from_numpy(own.here.t).to(self.barrier.when).reshape(self.records.members)
            self.barrier.after_step(0.0, 1.0, lambda s: own.part(s, self._watch_of), now)
        for row in np.intersect1d(took, own.running()) if self.task.events else ():
            self._look_alone(own, int(row))

    def _look_alone(self, own: OwnSteps, row: int) -> None:
        """Ends a member at the first event inside its last step."""
        lookout = self._lookout(row)
        watch = cast(Watch, lookout.velocity)
        watch.evaluations = int(own.evaluations[row])
        alone = own.alone(row, watch)
        try:
            first = lookout.inside(alone, alone.since)
            if first is not None:
                at, event = first
                own.freeze(row, at, lookout.point(alone, at).state, event.code)
        except Stopped as stop:
            if stop.code == "seconds":
                raise
            own.take_back(np.array([row]), stop.code)
        own.evaluations[row] = watch.evaluations
        self.watch.evaluations = max(self.watch.evaluations, watch.evaluations)

    def _go_back(self) -> None:
        super()._go_back()
        self.stepper = None  # made anew from there

    def _put_back(self, own: OwnSteps) -> bool:
        """Puts members that have no finite z to where it was last, and ends them there; whether there are any."""
        flow, members, (t, last) = self.grid.flow, self.records.members, self.records.last
        put: np.ndarray = np.arange(0)
        while True:
            state = own.state
            try:
                z = flow.product(state)
                bad, code = not_finite(z, members) | not_finite(flow.loss(z), members), "not_finite"
            except FAILURES:
                bad, code = culprits(flow.product, FAILURES, state, last, members), "velocity"
            rows = np.setdiff1d(bad.reshape(-1).cpu().numpy().nonzero()[0], put)
            if not len(rows):  # what else is in the way, the records have told
                return len(put) > 0
            own.put_back(rows, t, last, code)
            put = np.union1d(put, rows)

    def _lookout(self, row: int) -> Lookout:
        if row not in self._lookouts:
            watch = self._watch_of(row)
            self._lookouts[row] = Lookout(self.task.events, watch, watch.grid)
        return self._lookouts[row]

    def _watch_of(self, row: int) -> Watch:
        """A watch over one member, as over a run of it alone."""
        flow = self.grid.flow
        try:
            flow = restricted(flow, self.records.members, torch.tensor(row, device=self.settled.state.device))
        except UNFIT as error:
            raise ValueError(
                f"select(members, index) of {type(flow.loss).__name__} must take an index without an axis too, that of "
                f"one member: the sign of its det z is watched over ({error})"
            ) from error
        grid = FixedGrid(flow, self.grid.rtol, self.grid.atol)
        spent = Spent(0, 0, self.watch.seconds)
        return Watch(grid, torch.Size(), self.watch.good, self.watch.budget, spent)

    def _said(self) -> tuple[str, str]:
        """Ending and status of members that have ended; "ok" where none has."""
        own = self._begun()
        endings, times = np.array(own.endings), own.here.t
        codes = [code for code in ENDINGS if code != "ok" and code in endings]
        if not codes:
            return "ok", "ok"
        # What is in the way comes before what was asked for.
        codes.sort(key=lambda code: code in EVENTS_ASKED)
        said = []
        for code in codes:
            which = endings == code
            first, last = times[which].min(), times[which].max()
            when = f"at t = {first:.6g}" if first == last else f"from t = {first:.6g} to {last:.6g}"
            name = of_members(torch.from_numpy(which).reshape(self.records.members)).removeprefix(" of ")
            said.append(f"{ENDINGS[code]}: {name}, {when}, where they stay")
        return codes[0], "; ".join(said)

    def _stopped(self, stop: Stopped) -> tuple[Snapshot, str, str]:
        self._unfinished = stop.code
        return super()._stopped(stop)

    def _second_thoughts(self) -> tuple[str, str]:
        self._beyond = self._out_of_reach(self.settled)
        said = [
            self._said(),
            ("depth", self.grid.verdict(self.records.columns["z"][-1])),
            ("unreachable", self._beyond and self._beyond.sentence),
        ]
        told = [(ending, sentence) for ending, sentence in said if ending != "ok" and sentence is not None]
        return (told[0][0], "; ".join(sentence for _, sentence in told)) if told else ("ok", "ok")

    def _endings(self, own: OwnSteps) -> list[str]:
        """How each member has ended, as it would be told alone."""
        endings = np.array(own.endings, dtype=object)
        going = endings == "ok"
        if self.records.outputs < len(self.task.points):
            endings[going] = self._unfinished
        else:
            beyond = None if self._beyond is None else self._beyond.which
            unresolved = cast(GridOfMembers, self.grid).unresolved(self.records.columns["z"][-1])
            for code, told in (("unreachable", beyond), ("depth", unresolved)):
                if told is not None:
                    endings[going & told.reshape(-1).cpu().numpy()] = code
        if self.barrier is not None:
            endings[~self.barrier.when.reshape(-1).isnan().cpu().numpy()] = "escaped"
        if self.risen is not None:
            endings[self.risen.which.reshape(-1).cpu().numpy()] = "escaped"
        return list(endings.tolist())

    def _trajectory(self, here: Snapshot, status: str, ending: str) -> Trajectory:
        own = self._begun()
        members = {
            "endings": self._endings(own),
            "times": own.here.t.tolist(),
            "evaluations": own.evaluations.tolist(),
            "steps": own.steps.tolist(),
        }
        result = super()._trajectory(here, status, ending)
        return replace(result, stats=result.stats | {"steps": max(members["steps"]), "members": members})
