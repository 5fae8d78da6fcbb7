"""Members of a study in one process: each runs as it would alone, and what they compute at the same time is gathered.

A member runs in a thread of its own until it asks for an integration; then the next one does. Of those that ask for the
same flow at the same times, with losses or kernels of their own, the states are stacked and moved as one batch, in
which each takes the steps that it would take alone (``control="member"``). The study knows nothing of it. One that can
solve a part of it for several members at once may ask for that as a whole, which spares them most of their own work.
"""

from __future__ import annotations

import copy
import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..depth.collocation import Collocation
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import DividedDifference, LogMean
from ..losses import Quadratic
from ..parallel import LONGEST_WAIT
from ..time.base import METHODS, own_steps
from ..time.endings import REACHED
from ..time.integrate import integrate
from ..time.resolution import allowed
from ..time.trajectory import Trajectory, at_times

Result = TypeVar("Result")

# Numbers in the states of one batch: more of them leave the caches.
_MOST_NUMBERS = 2**16

_PATIENCE = 10.0  # seconds that a thread has to come to its end

# Arguments of `integrate` that a batch can take, as they are or for each member.
_TAKEN = {
    "method", "rtol", "atol", "checkpoint", "every", "progress", "observe", "max_evaluations", "max_seconds", "checks"
}  # fmt: skip


class Company(Protocol):
    """What stands for `integrate` in a member that runs beside others."""

    def __call__(self, flow: Any, state: Any, times: Any, **options: Any) -> Trajectory: ...

    def solved(self, solve: Callable[[list[Any]], list[Result]], posed: Any, kind: Any) -> Result | None:
        """Its own of solve([posed, …]) for all members that ask for the same kind; None if it has to do it alone."""
        ...


def together(works: Sequence[Callable[[Company], Result]]) -> list[Result | Exception]:
    """work(company) of all members; of one that raises, its exception.

    Parameters
    ----------
    works : sequence of callable
        Each is given what stands for `integrate`. Its numbers are those of a run alone: to the bit of flows whose
        velocity the compiled engine computes, else to round-off. What cannot be gathered is integrated alone.
    """
    members = [_Member(work) for work in works]
    try:
        for member in members:
            member.go_on()
        while asking := [(member, member.asks) for member in members if member.asks is not None]:
            most, _ = Counter(asks.kind for _, asks in asking).most_common(1)[0]
            group = [(member, asks) for member, asks in asking if asks.kind == most]
            same: list[Any] = [asks for _, asks in group]
            for (member, _), answer in zip(group, same[0].answers(same), strict=True):
                member.go_on(answer)
    except BaseException:  # the user's Ctrl-C: those that wait end
        for member in members:
            member.give_up()
        raise
    finally:
        for member in members:
            member.end()
    return [member.outcome() for member in members]


class SomeFailed(Exception):
    """What is raised by work for several members where it is known which of them fail, and by what."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        super().__init__(f"{len(errors)} of several members failed; {next(iter(errors.values()))}")
        self.errors = errors


def raise_any(errors: dict[int, Exception], number: int) -> None:
    """Raises the errors of members, by their number in a work for so many, if there are any; of one alone its own."""
    if errors:
        raise next(iter(errors.values())) if number == 1 else SomeFailed(errors)


class _GivenUp(BaseException):
    """Ends the thread of a member."""


class _Member(Generic[Result]):
    """A study in a thread, which waits whenever it has asked for something."""

    def __init__(self, work: Callable[[Company], Result]) -> None:
        self.asks: Call | _Posed | None = None
        self._work = work
        self._result: Result | None = None
        self._error: Exception | None = None
        # Semaphores of Python take ten times as long.
        self._answers, self._back = SimpleQueue[Any](), SimpleQueue[None]()
        self._device = torch.get_default_device()
        self._given_up = self._at_work = False
        # With what was set for the thread that starts it, such as what NumPy does with errors.
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)
        self._thread.start()

    def go_on(self, answer: Any = None) -> None:
        """Lets it run until it asks again, or ends."""
        self.asks, self._at_work = None, True
        self._answers.put(answer)
        while self._at_work:
            with suppress(Empty):
                self._back.get(timeout=LONGEST_WAIT)
                self._at_work = False

    def give_up(self) -> None:
        """Ends it where it waits, or at its next step in Python: what it computes by itself may take hours."""
        self._given_up = True
        self._answers.put(None)
        if self._at_work and self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(_GivenUp))

    def end(self) -> None:
        """Waits for the thread: one that is alive when Python ends takes the process down."""
        self._thread.join(_PATIENCE)

    def outcome(self) -> Result | Exception:
        """What it has come to."""
        return self._error if self._error is not None else self._result  # type: ignore[return-value]

    def __call__(self, flow: Any, state: Any, times: Any, **options: Any) -> Trajectory:
        call = Call(flow, state, times, options)
        return call.alone() if call.kind is None or not self._is_running() else self._asked(call)

    def solved(self, solve: Callable[[list[Any]], list[Any]], posed: Any, kind: Any) -> Any:
        """Its own of what is solved for all members that ask for the same kind."""
        try:
            hash(kind)
        except TypeError as error:
            raise TypeError(
                f"kind must be hashable, to be compared with that of other members, got {kind!r}"
            ) from error
        return self._asked(_Posed(solve, posed, ("posed", solve, kind))) if self._is_running() else None

    def _is_running(self) -> bool:
        """Whether it is its thread that asks: what is solved for several members runs in another one."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        self._answers.get()
        try:
            if self._given_up:
                return
            torch.set_num_threads(1)
            if self._device.type != "cpu":
                torch.set_default_device(self._device)  # of this thread
            self._result = self._work(self)
        except Exception as error:
            self._error = error
        except SystemExit as stop:
            self._error = RuntimeError(f"it asked Python to end ({stop})")
        except _GivenUp:
            return
        finally:
            self._back.put(None)

    def _asked(self, asks: Call | _Posed) -> Any:
        """Waits for the answer; raises it if it is an exception."""
        self.asks = asks
        self._back.put(None)
        answer = self._answers.get()
        if self._given_up:
            raise _GivenUp
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass(frozen=True, eq=False)
class _Posed:
    """A part of a study that can be solved for several members at once."""

    solve: Callable[[list[Any]], list[Any]]
    posed: Any
    kind: Any

    @staticmethod
    def answers(asked: Sequence[_Posed]) -> list[Any]:
        """Of each what is solved, or its error; None where it has to be alone: it is so, or all fail beside it."""
        number = len(asked)
        if number < 2:
            return [None] * number
        try:
            found = list(asked[0].solve([one.posed for one in asked]))
        except SomeFailed as failed:
            rest = [i for i in range(number) if i not in failed.errors]
            answers = failed.errors | dict(zip(rest, _Posed.answers([asked[i] for i in rest]), strict=True))
            return [answers[i] for i in range(number)]
        except Exception:  # some of them fail, or there is no room for as many
            half = number // 2
            return [*_Posed.answers(asked[:half]), *_Posed.answers(asked[half:])]
        if len(found) != number:
            return [ValueError(f"solve must give a result for each of {number} members, got {len(found)}")] * number
        return found


@dataclass(frozen=True, eq=False)
class Call:
    """An integration that a member asks for."""

    flow: Any
    state: Any
    times: Any
    options: dict[str, Any]
    asked: float = field(default_factory=time.monotonic)

    @cached_property
    def kind(self) -> Any:
        """What calls that can be gathered have in common; None for one that cannot."""
        options = {name: value for name, value in self.options.items() if value not in (None, False, {})}
        fits = isinstance(self.state, Tensor) and isinstance(self.times, Tensor) and _TAKEN.issuperset(options)
        method = str(options.get("method"))
        if not fits or method not in METHODS or own_steps(METHODS[method]) is None:
            return None
        if 2 * self.state.numel() > _MOST_NUMBERS:
            return None
        flow = flow_kind(self.flow)
        # What is a batch itself has shared steps alone.
        if flow is None or self.state.ndim != (2 if type(self.flow) is IntrinsicFlow else 3):
            return None
        control = tuple(options.get(name) for name in ("method", "rtol", "atol", "max_evaluations"))
        start = tuple(self.state.shape), self.state.dtype, self.state.device
        return flow, start, _numbers(self.times), control, "observe" in options, self.checks

    @property
    def checks(self) -> bool:
        """Whether the law and the depth grid are looked at."""
        return bool(self.options.get("checks", True))

    def alone(self) -> Trajectory:
        """What it comes to without others."""
        return integrate(self.flow, self.state, self.times, **(self.options | self.left))

    @property
    def left(self) -> dict[str, Any]:
        """What is left of the wall time since it was asked for, which others may have used up."""
        seconds = self.options.get("max_seconds")
        return {} if seconds is None else {"max_seconds": max(seconds - (time.monotonic() - self.asked), 1e-9)}

    @staticmethod
    def answers(calls: Sequence[Call]) -> list[Trajectory | Exception]:
        """The trajectories of calls of one kind."""
        found = {row: path for piece in _pieces(calls) for row, path in piece.each()}
        return [found[row] for row in range(len(calls))]


def _numbers(values: Tensor) -> bytes:
    """All digits of some numbers, to be compared."""
    return values.detach().cpu().numpy().tobytes()


def flow_kind(flow: Any) -> Any:
    """What flows that can be stacked have in common; None for one that cannot."""
    loss = ("each", tuple(flow.loss.target.shape)) if type(flow.loss) is Quadratic else ("one", id(flow.loss))
    kind = type(flow)
    if kind is FiniteFlow:
        return kind, loss, flow.depth, id(flow.rule), flow.sampling
    if kind is ContinuousFlow and type(flow.depth) is Collocation:
        return kind, loss, flow.grid.panels, flow.grid.order, _numbers(flow.grid.nodes)
    if kind is not IntrinsicFlow:
        return None
    if type(flow.kernel) is LogMean:
        return kind, loss
    if type(flow.kernel) is DividedDifference and not flow.kernel.keeps_sign:
        return kind, loss, len(flow.kernel.shifts), flow.kernel.time_scale
    return None


@dataclass(frozen=True, eq=False)
class _Piece:
    """What some of the calls have come to: a batch, or one that was integrated alone."""

    rows: Sequence[int]
    found: Trajectory | Exception
    gathered: bool = False

    def each(self) -> Iterator[tuple[int, Trajectory | Exception]]:
        """The trajectory of every row, as if each had been alone."""
        if self.gathered:
            assert isinstance(self.found, Trajectory)
            yield from zip(self.rows, _parts(self.found), strict=True)
        else:
            yield self.rows[0], self.found


class Paths:
    """The runs of several members side by side, in the order of the calls.

    Parameters
    ----------
    calls : sequence of Call
        Those of one kind are gathered, else each is integrated alone.

    Attributes
    ----------
    errors : dict
        What members have raised, by their numbers; where there is something, the first is raised by all else.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        if not calls:
            raise ValueError("there must be at least one run, got none")
        self._number, self._times = len(calls), calls[0].times
        kinds = {call.kind for call in calls}
        pieces = _pieces(calls) if len(kinds) == 1 and None not in kinds else [*map(_alone, calls, range(len(calls)))]
        self._fill(pieces)

    @classmethod
    def of(cls, paths: Sequence[Trajectory], times: Tensor) -> Paths:
        """Those of members that were integrated one by one, and asked for these times."""
        own = cls.__new__(cls)
        own._number, own._times = len(paths), times
        own._fill([_Piece([row], path) for row, path in enumerate(paths)])
        return own

    def _fill(self, pieces: Sequence[_Piece]) -> None:
        found = [(piece, piece.found) for piece in pieces]
        self.errors = {piece.rows[0]: path for piece, path in found if isinstance(path, Exception)}
        self._whole = [(piece.rows, path, piece.gathered) for piece, path in found if isinstance(path, Trajectory)]

    @property
    def _pieces(self) -> list[tuple[Sequence[int], Trajectory, bool]]:
        if self.errors:
            raise next(iter(self.errors.values()))
        return self._whole

    @cached_property
    def each(self) -> list[Trajectory]:
        """The trajectory of every member, as if it had been alone."""
        found = {row: path for piece in self._pieces for row, path in _Piece(*piece).each()}
        return [found[row] for row in range(self._number)]  # type: ignore[misc]

    def column(self, name: str) -> Tensor:
        """What a trajectory has for every output time, `(T, members, …)`; NaN after an early end."""
        values = [(rows, self._values(name, path, gathered)) for rows, path, gathered in self._pieces]
        if len(values) == 1:
            return values[0][1]
        filled = values[0][1].new_empty(len(self._times), self._number, *values[0][1].shape[2:])
        for rows, own in values:  # what is of a row in a later piece is right
            filled[:, rows] = own
        return filled

    def largest(self, name: str) -> Tensor:
        """The largest entry of a column until the end of each, `(members,)`."""
        largest = self._pieces[0][1].loss.new_empty(self._number)
        for rows, path, gathered in self._pieces:
            values: Tensor = getattr(path, name)
            largest[rows] = values.movedim(1, 0).flatten(1).amax(-1) if gathered else values.max()
        return largest

    def _values(self, name: str, path: Trajectory, gathered: bool) -> Tensor:
        """Those of all output times, `(T, rows, …)`."""
        return getattr(path, name) if gathered else at_times(path, self._times, name).unsqueeze(1)

    @property
    def evaluations(self) -> list[int]:
        """Those of every member."""
        return self._told(lambda path: path.stats["members"]["evaluations"], lambda path: path.stats["evaluations"])

    @property
    def seconds(self) -> list[float]:
        """The wall time of every member: an equal share of that of its batch."""
        return self._told(
            lambda path: [path.stats["seconds"] / path.loss.shape[1]] * path.loss.shape[1],
            lambda path: path.stats["seconds"],
        )

    @property
    def statuses(self) -> list[str]:
        """The status of every member."""
        return self._told(lambda path: [path.status] * path.loss.shape[1], lambda path: path.status)

    @property
    def reached(self) -> list[bool]:
        """Which members have come to the last time with numbers to trust; their target may be out of reach."""
        return self._told(lambda path: [True] * path.loss.shape[1], lambda path: path.ending in REACHED)

    @property
    def broken(self) -> list[str]:
        """Why members have not come to the last time; "" of those that have."""
        return ["" if reached else status for reached, status in zip(self.reached, self.statuses, strict=True)]

    def _told(self, batch: Callable[[Trajectory], list[Any]], alone: Callable[[Trajectory], Any]) -> list[Any]:
        told: list[Any] = [None] * self._number
        for rows, path, gathered in self._pieces:
            for row, value in zip(rows, batch(path) if gathered else [alone(path)], strict=True):
                told[row] = value
        return told


def _pieces(calls: Sequence[Call]) -> list[_Piece]:
    """What calls of one kind come to, in batches that the caches hold; what is of a row in a later one is right."""
    size = max(1, _MOST_NUMBERS // calls[0].state.numel())
    rows = range(len(calls))
    return [piece for i in rows[::size] for piece in _batch(calls, rows[i : i + size])]


def _batch(calls: Sequence[Call], rows: Sequence[int]) -> list[_Piece]:
    """Trajectories side by side; a member that does not come to the last time is integrated alone, to end as alone."""
    some = [calls[row] for row in rows]
    if len(some) == 1:
        if type(some[0].flow) is not IntrinsicFlow:
            return [_alone(some[0], rows[0])]
        # Products of a batch are rounded in another way than a single one: whoever else comes must make no difference.
        return [_Piece(rows, Call.answers([*some, *some])[0])]
    try:
        path = _gathered(some)
    except Exception:  # each says for itself what is wrong
        return [*map(_alone, some, rows)]
    if path.ending == "ok":
        unclear = [row for row, resolved in zip(rows, _resolved(path), strict=True) if not resolved]
        return [_Piece(rows, path, gathered=True), *(_alone(calls[row], row) for row in unclear)]
    good = [ending == "ok" for ending in path.stats["members"]["endings"]]
    if all(good) or not any(good):  # the sentence is about the batch, or about all of it
        return [*map(_alone, some, rows)]
    rest = [row for row, fine in zip(rows, good, strict=True) if fine]
    lost = [row for row, fine in zip(rows, good, strict=True) if not fine]
    return [*_batch(calls, rest), *(_alone(calls[row], row) for row in lost)]


def _resolved(path: Trajectory) -> list[bool]:
    """Whether the largest depth error of the batch is allowed for each member, too."""
    error, rtol, atol = float(path.depth_error[-1]), path.stats["rtol"], path.stats["atol"]
    sizes = torch.linalg.matrix_norm(path.z[-1]).tolist()
    return [not error > allowed(size, rtol, atol) for size in sizes]


def _alone(call: Call, row: int) -> _Piece:
    try:
        return _Piece([row], call.alone())
    except Exception as error:
        return _Piece([row], error)


def _gathered(calls: Sequence[Call]) -> Trajectory:
    first = calls[0]
    options = {name: first.options[name] for name in ("method", "rtol", "atol")}
    most = first.options.get("max_evaluations")
    observers = [call.options.get("observe") for call in calls]
    # An observer may look at the states of several members at once.
    at_once = getattr(type(observers[0]), "together", None)

    def observe(i: int, states: Tensor) -> Tensor | None:
        if at_once is not None and all(type(observer) is type(observers[0]) for observer in observers):
            return at_once(observers, i, states)
        seen = [observer(i, state) for observer, state in zip(observers, states, strict=True) if observer is not None]
        return None if any(value is None for value in seen) else torch.stack(seen)

    return integrate(
        _stacked([call.flow for call in calls]),
        torch.stack([call.state for call in calls]),
        first.times,
        **options,
        **({} if most is None else {"max_evaluations": most}),
        **min((call.left for call in calls), key=lambda left: left.get("max_seconds", 0.0)),
        control="member",
        checks=first.checks,
        observe=observe if observers[0] is not None else None,
    )


def _stacked(flows: Sequence[Any]) -> Any:
    """One flow of all members."""
    first = flows[0]
    flow = copy.copy(first)
    if any(other.loss is not first.loss for other in flows):
        flow.loss = Quadratic(torch.stack([other.loss.target for other in flows]))
    if isinstance(first, IntrinsicFlow) and isinstance(first.kernel, DividedDifference):
        flow.kernel = DividedDifference.together([other.kernel for other in flows])
    return flow


def _parts(path: Trajectory) -> list[Trajectory]:
    """The trajectories of members that came to the last time, as if each had been alone."""
    members, modes = path.stats["members"], path.stats["law_modes"]
    shared = {name: value for name, value in path.stats.items() if name != "members"}
    shared["seconds"] /= len(members["steps"])
    columns = ("z", "loss", "drift", "observed", "carried_log_sigma")  # (T, n, …)
    told = {name: values.unbind(1) for name in columns if (values := getattr(path, name)) is not None}
    return [
        replace(
            path,
            state=state,
            stats=shared
            | {
                "evaluations": members["evaluations"][i],
                "steps": members["steps"][i],
                "law_modes": modes and {name: values[i] for name, values in modes.items()},
            },
            **{name: values[i] for name, values in told.items()},
        )
        for i, state in enumerate(path.state.unbind(0))
    ]
