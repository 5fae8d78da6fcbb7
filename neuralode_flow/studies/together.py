"""Members of a study in one process: each runs as it would alone, and what they integrate at the same time is gathered.

A member runs in a thread of its own until it asks for an integration; then the next one does. Of those that ask for the
same flow at the same times, with losses or kernels of their own, the states are stacked and moved as one batch, in
which each takes the steps that it would take alone (``control="member"``). The study knows nothing of it.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..depth.collocation import Collocation
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import DividedDifference, LogMean
from ..losses import Quadratic
from ..time.base import METHODS, own_steps
from ..time.integrate import integrate
from ..time.resolution import allowed
from ..time.trajectory import Trajectory

Result = TypeVar("Result")
Integrate = Callable[..., Trajectory]

# Numbers in the states of one batch: more of them leave the caches.
_MOST_NUMBERS = 2**16

_PATIENCE = 10.0  # seconds that a thread has to come to its end

# Arguments of `integrate` that a batch can take, as they are or for each member.
_TAKEN = {"method", "rtol", "atol", "checkpoint", "every", "progress", "observe", "max_evaluations", "checks"}


def together(works: Sequence[Callable[[Integrate], Result]]) -> list[Result | Exception]:
    """work(integrate) of all members; of one that raises, its exception.

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
        while asking := [member for member in members if member.asks is not None]:
            kinds = [member.asks.kind for member in asking if member.asks is not None]
            most, _ = Counter(kinds).most_common(1)[0]
            group = [member for member, kind in zip(asking, kinds, strict=True) if kind == most]
            answers = _answers([member.asks for member in group if member.asks is not None])
            for member, answer in zip(group, answers, strict=True):
                member.go_on(answer)
    except BaseException:  # the user's Ctrl-C: those that wait end
        for member in members:
            member.give_up()
        raise
    finally:
        for member in members:
            member.end()
    return [member.outcome() for member in members]


class _GivenUp(BaseException):
    """Ends the thread of a member."""


class _Member(Generic[Result]):
    """A study in a thread, which waits whenever it has asked for an integration."""

    def __init__(self, work: Callable[[Integrate], Result]) -> None:
        self.asks: _Call | None = None
        self._work = work
        self._result: Result | None = None
        self._error: Exception | None = None
        # Semaphores of Python take ten times as long.
        self._answers, self._back = SimpleQueue[Any](), SimpleQueue[None]()
        self._device = torch.get_default_device()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self, answer: Any = None) -> None:
        """Lets it run until it asks again, or ends."""
        self.asks = None
        self._answers.put(answer)
        self._back.get()

    def give_up(self) -> None:
        """Ends it where it waits, or when it next asks."""
        self._given_up = True
        self._answers.put(None)

    def end(self) -> None:
        """Waits for the thread: one that is alive when Python ends takes the process down."""
        self._thread.join(_PATIENCE)

    def outcome(self) -> Result | Exception:
        """What it has come to."""
        return self._error if self._error is not None else self._result  # type: ignore[return-value]

    def _run(self) -> None:
        self._answers.get()
        try:
            if self._given_up:
                return
            torch.set_num_threads(1)
            if self._device.type != "cpu":
                torch.set_default_device(self._device)  # of this thread
            self._result = self._work(self._integrate)
        except Exception as error:
            self._error = error
        except _GivenUp:
            return
        finally:
            self._back.put(None)

    def _integrate(self, flow: Any, state: Any, times: Any, **options: Any) -> Trajectory:
        call = _Call(flow, state, times, options)
        if call.kind is None:
            return call.alone()
        self.asks = call
        self._back.put(None)
        answer = self._answers.get()
        if self._given_up:
            raise _GivenUp
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass(frozen=True, eq=False)
class _Call:
    """An integration that a member asks for."""

    flow: Any
    state: Any
    times: Any
    options: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self._kind())

    kind: Any = None  # what calls that can be gathered have in common; None for one that cannot

    def _kind(self) -> Any:
        options = {name: value for name, value in self.options.items() if value not in (None, False, {})}
        fits = isinstance(self.state, Tensor) and isinstance(self.times, Tensor) and _TAKEN.issuperset(options)
        method = str(options.get("method"))
        if not fits or method not in METHODS or own_steps(METHODS[method]) is None:
            return None
        if 2 * self.state.numel() > _MOST_NUMBERS:
            return None
        flow = _flow_kind(self.flow)
        if flow is None:
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
        return integrate(self.flow, self.state, self.times, **self.options)


def _numbers(values: Tensor) -> bytes:
    """All digits of some numbers, to be compared."""
    return values.detach().cpu().numpy().tobytes()


def _flow_kind(flow: Any) -> Any:
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


def _answers(calls: Sequence[_Call]) -> list[Trajectory | Exception]:
    """The trajectories of calls of one kind, in batches that the caches hold."""
    size = max(1, _MOST_NUMBERS // calls[0].state.numel())
    return [answer for i in range(0, len(calls), size) for answer in _batch(calls[i : i + size])]


def _batch(calls: Sequence[_Call]) -> list[Trajectory | Exception]:
    """Trajectories side by side; a member that does not come to the last time is integrated alone, to end as alone."""
    if len(calls) == 1:
        # Products of a batch are rounded in another way than a single one: whoever else comes must make no difference.
        return _batch([*calls, *calls])[:1] if type(calls[0].flow) is IntrinsicFlow else [_alone(calls[0])]
    try:
        path = _gathered(calls)
    except (ValueError, TypeError, RuntimeError, ArithmeticError):  # each says for itself what is wrong
        return [*map(_alone, calls)]
    if path.ending == "ok":
        parts = zip(calls, _parts(path), _resolved(path), strict=True)
        return [part if resolved else _alone(call) for call, part, resolved in parts]
    good = [ending == "ok" for ending in path.stats["members"]["endings"]]
    if all(good) or not any(good):  # the sentence is about the batch, or about all of it
        return [*map(_alone, calls)]
    rest = iter(_batch([call for call, fine in zip(calls, good, strict=True) if fine]))
    return [next(rest) if fine else _alone(call) for call, fine in zip(calls, good, strict=True)]


def _resolved(path: Trajectory) -> list[bool]:
    """Whether the largest depth error of the batch is allowed for each member, too."""
    error, rtol, atol = float(path.depth_error[-1]), path.stats["rtol"], path.stats["atol"]
    sizes = torch.linalg.matrix_norm(path.z[-1]).tolist()
    return [not error > allowed(size, rtol, atol) for size in sizes]


def _alone(call: _Call) -> Trajectory | Exception:
    try:
        return call.alone()
    except Exception as error:
        return error


def _gathered(calls: Sequence[_Call]) -> Trajectory:
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
