"""Looks at numbers on an accelerator, which make the processor wait for it: those of a step are taken as one.

Inside `postponed` nothing is decided by numbers: what would be in doubt is noted on the device, and whoever began looks
at all of it once. Where something was, the work is done again, with a look wherever one is due.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


class Looks:
    """What a run on an accelerator has not looked at yet, and what it learned when it last did.

    Attributes
    ----------
    doubts : list of Tensor
        Booleans of no axes: whether something is not as it was taken to be.
    known : dict
        What those who looked have found, for those who do not.
    steady : bool
        Whether the same operations are done each time; someone who cannot do without a look says that they are not.
    """

    def __init__(self) -> None:
        self.doubts: list[Tensor] = []
        self.known: dict[Hashable, int] = {}
        self.steady = True
        self._replays: dict[Hashable, Replay] = {}

    def doubt(self) -> Tensor:
        """Whether there was a doubt since this was asked for last, without looking."""
        doubts, self.doubts = self.doubts, []
        return torch.stack(doubts).any()

    def doubted(self) -> bool:
        """The same, looked at."""
        return bool(self.doubts) and bool(self.doubt())

    def forget(self) -> None:
        """Goes back to the beginning, after a doubt."""
        self.doubts, self.known, self.steady, self._replays = [], {}, True, {}

    def replayed(self, key: Hashable, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        """function(argument) of one that decides nothing by numbers and is told from others by the key.

        From its second call on with arguments of one shape the device has it as one graph of operations.
        """
        key = key, argument.shape, argument.dtype
        if key not in self._replays or not (self.steady and argument.is_cuda):
            self._replays[key] = Replay(self, function)
            return function(argument)
        return self._replays[key](argument)


class Replay:
    """A function that the device has been taught: its operations, and where in memory they work."""

    def __init__(self, looks: Looks, function: Callable[[Tensor], Tensor]) -> None:
        self._looks, self._function = looks, function
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, argument: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = self._recorded(argument)
        self._argument.copy_(argument)
        self._graph.replay()
        if self._doubt is not None:
            self._looks.doubts.append(self._doubt.clone())
        return self._result.clone()

    def _recorded(self, argument: Tensor) -> torch.cuda.CUDAGraph:
        looks = self._looks
        self._argument = argument.clone()
        others, looks.doubts = looks.doubts, []
        beside = torch.cuda.Stream(argument.device)
        beside.wait_stream(torch.cuda.current_stream(argument.device))
        with torch.cuda.stream(beside):  # libraries take their memory in a first call, which cannot be recorded
            self._function(self._argument)
        torch.cuda.current_stream(argument.device).wait_stream(beside)
        looks.doubts, graph = [], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = self._function(self._argument)
            self._doubt = looks.doubt() if looks.doubts else None
        looks.doubts = others
        return graph


class _Current(threading.local):
    looks: Looks | None = None


_CURRENT = _Current()


def current() -> Looks | None:
    """Where doubts are noted; None where one looks at once."""
    return _CURRENT.looks


def as_one(looks: Looks | None, work: Callable[[], R]) -> R:
    """work() with its looks taken as one; where there was a doubt it is done again, with each look where it is due."""
    if looks is None:
        return work()
    with postponed(looks):
        result = work()
    if not looks.doubted():
        return result
    looks.forget()
    return work()


@contextmanager
def postponed(looks: Looks | None) -> Iterator[None]:
    """Until the block ends, doubts are noted in `looks`; with None one looks at once."""
    before, _CURRENT.looks = _CURRENT.looks, looks
    try:
        yield
    finally:
        _CURRENT.looks = before
